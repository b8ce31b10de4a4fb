"""Which parameter was meant by a name that an API does not have.

Owns the names that several APIs have for one thing, and the search for one that is spelled nearly
so; not what happens then (``fields``). Invariant: what is found is a name of those that there are,
and a long name takes no long search.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches

LONGEST = 64
"""Names with more characters are near to none."""

_NEARNESS = 0.8  # of difflib's ratio: a letter too many, or two that changed places

_ONE_THING = (
    (
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens_to_sample",
        "max_new_tokens",
        "max_length",
        "n_predict",
        "num_predict",
    ),
    ("stop", "stop_sequences", "stop_strings"),
    ("messages", "input", "prompt"),
    ("instructions", "system", "system_prompt"),
    ("response_format", "text.format", "output_config.format"),
    ("reasoning_effort", "reasoning.effort", "thinking", "effort"),
    ("parallel_tool_calls", "tool_choice.disable_parallel_tool_use"),
    ("parameters", "input_schema"),
    ("tool_call_id", "call_id", "tool_use_id"),
    ("arguments", "input"),
    ("repetition_penalty", "repeat_penalty"),
    ("tools", "functions"),
    ("tool_choice", "function_call"),
    ("user", "metadata.user_id"),
)


def meant(name: str, known: Collection[str]) -> str | None:
    """The one of ``known``, or a place in one, that ``name`` stands for in another API or is
    nearly the name of; None where there is none."""
    if len(name) > LONGEST:
        return None
    for group in _ONE_THING:
        if name in group:
            for other in group:
                if other.partition(".")[0] in known:
                    return other
    spelled = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).replace("-", "_").lower()
    near = get_close_matches(spelled, known, 1, _NEARNESS)
    return near[0] if near else None
