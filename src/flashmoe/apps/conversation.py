"""What a run says to the model: a conversation's opening, its next turn, or raw text.

Owns how the command line's words become a turn (``flashmoe.turn``), and the next turn of a timeline
of which there are the ids alone; the chat template writes all markup.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashmoe.engine import Engine
from flashmoe.errors import InputError, TemplateError, reason
from flashmoe.text.template import Segment
from flashmoe.turn import Opening, Plain, Turn

_MARK = "\ue000"  # a private character: it stands for a reply where no text can be mistaken


@dataclass(frozen=True)
class Prompt:
    """What the user said. ``text`` None goes on where a loaded session ends; ``thinking`` None
    leaves the template's own default."""

    text: str | None
    raw: bool = False
    system: str | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool | None = None

    def __post_init__(self) -> None:
        if self.raw and (self.system is not None or self.tools):
            raise InputError("--system and --tools need the chat template: leave out --raw")
        if self.raw and self.thinking is not None:
            raise InputError("--think and --no-think need the chat template: leave out --raw")


def read_prompt(prompt: str | None) -> str | None:
    """The prompt, from standard input where it is ``-`` or missing and something is piped in.

    One line break at its end is not part of it. None: there is none.

    Raises:
        InputError: standard input is not UTF-8.
    """
    if prompt is not None and prompt != "-":
        return prompt
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):
        return None
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError("standard input is not UTF-8: send it as that") from error
    except OSError as error:
        raise InputError(f"standard input cannot be read: {reason(error)}") from error
    return text.removesuffix("\n")


def read_tools(path: Path) -> list[dict[str, Any]]:
    """The tools of a JSON file: a list of objects in OpenAI's shape.

    Raises:
        InputError: missing, or something else.
    """
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"the tools in {path} cannot be read: {reason(error)}") from error
    if not isinstance(tools, list) or not all(map(_is_tool, tools)):
        raise InputError(
            f"{path} is not a JSON list of tools, such as "
            '[{"type": "function", "function": {"name": …, "parameters": …}}]'
        )
    return tools


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return isinstance(name, str) and bool(name)


def opening(engine: Engine, prompt: Prompt) -> Opening:
    """The turn that begins a conversation, or the raw text.

    Calls of tools are bound to their schemas where their form can be read; where the template
    writes them in another one they come as the model will.

    Raises:
        InputError: the store has no tokenizer or no chat template, a tool cannot be enforced.
        TemplateError: the template rejects the conversation.
        ContextError: the prompt leaves no room for a reply.
    """
    assert prompt.text is not None
    if prompt.raw:
        return Opening.of(engine, Plain(prompt.text))
    messages = [{"role": "user", "content": prompt.text}]
    if prompt.system is not None:
        messages.insert(0, {"role": "system", "content": prompt.system})
    turn = Turn(
        tuple(messages),
        tools=tuple(prompt.tools),
        thinking=prompt.thinking,
        constrained=engine.syntax.calls is not None,
    )
    return Opening.of(engine, turn)


def next_turn(engine: Engine, prompt: Prompt, ids: Sequence[int]) -> Opening:
    """What follows a saved timeline ``ids`` with another turn; no ids without text.

    Raises:
        InputError: reasoning is asked for, and the template has no mark for it.
        TemplateError: the template does not write turns one after the other.
    """
    following: list[int] = []
    if prompt.text and prompt.raw:
        following = engine.tokenizer.encode_segments([Segment(prompt.text, markup=True)])
    elif prompt.text:
        if prompt.thinking and not engine.syntax.think_close:
            raise InputError("the chat template has no mark for reasoning: leave out --think")
        following = engine.tokenizer.encode_segments(_after_reply(engine, prompt))
        # A reply that came to its end has the token that closes it already.
        if ids and following and following[0] == ids[-1]:
            del following[0]
    return Opening(Plain(tuple(following)), tuple(following))


def _after_reply(engine: Engine, prompt: Prompt) -> list[Segment]:
    """What the template writes after a reply when the user speaks again."""
    assert prompt.text is not None
    mark = _MARK
    while mark in prompt.text:
        mark += _MARK
    messages = [
        {"role": "user", "content": "-"},
        {"role": "assistant", "content": mark},
        {"role": "user", "content": prompt.text},
    ]
    segments = engine.template.render(messages, enable_thinking=prompt.thinking)
    for index, segment in enumerate(segments):
        _, found, rest = segment.text.partition(mark)
        if found and not segment.markup:
            return [Segment(rest, markup=False), *segments[index + 1 :]]
    raise TemplateError(
        "the chat template leaves out earlier replies, so a saved conversation cannot go on "
        "through it: use --raw"
    )
