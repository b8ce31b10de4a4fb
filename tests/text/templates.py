"""Chat templates that tests of replies share: Qwen3.5's own, and some written for tests.

``HERMES`` writes tools and calls as JSON, ``PLAIN`` knows roles and content alone. ``FAMILIES`` are
written after the conventions of published families that call in JSON, in words of our own.
"""

from __future__ import annotations

from pathlib import Path

QWEN = (Path(__file__).parents[1] / "golden" / "qwen3.5.jinja").read_text()

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

HERMES = (
    "{% if tools %}<|im_start|>system\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ '' if loop.first and not m.content else '\n' }}"
    '<tool_call>\n{"name": {{ call.function.name | tojson }}, '
    '"arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_OPEN = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
_CLOSE = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_TOLD = (
    "{% if tools %}<|im_start|>system\n<tools>\n{% for tool in tools %}{{ tool | tojson }}\n"
    "{% endfor %}</tools><|im_end|>\n{% endif %}"
)
_THOUGHT = (
    "{% if m.role == 'assistant' and m.reasoning_content %}"
    "<think>\n{{ m.reasoning_content.strip('\n') }}\n</think>\n\n{% endif %}"
)
_RESULT = (
    "{% if m.role == 'tool' %}<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% else %}{{ m.content or '' }}{% endif %}"
)


def _family(call: str, before: str = "", between: str = "{{ '\\n' }}", after: str = "") -> str:
    """A template that writes a call so, between what stands before, between and after them all."""
    calls = (
        "{% for call in m.tool_calls or [] %}{% set f = call.function or call %}"
        f"{{% if loop.first %}}{{{{ '\\n' if m.content else '' }}}}{before}"
        f"{{% else %}}{between}{{% endif %}}{call}"
        f"{{% if loop.last %}}{after}{{% endif %}}{{% endfor %}}"
    )
    return _TOLD + _OPEN + _THOUGHT + _RESULT + calls + _CLOSE


_EITHER = "{{ f.arguments if f.arguments is string else f.arguments | tojson }}"
_OBJECT = '{"name": "{{ f.name }}", "arguments": ' + _EITHER + "}"
FAMILIES = {
    "Qwen3": _family(f"<tool_call>\n{_OBJECT}\n</tool_call>"),
    "SmolLM3": _family(f"<tool_call>{_OBJECT}</tool_call>", between=""),
    "on one line": _family(f"<tool_call> {_OBJECT} </tool_call>", between=" "),
    "arguments first": _family(
        '<tool_call>\n{"arguments": ' + _EITHER + ', "name": "{{ f.name }}"}\n</tool_call>'
    ),
    "arguments as text": _family(
        '<tool_call>\n{"name": {{ f.name | tojson }}, "arguments": '
        "{{ (f.arguments if f.arguments is string else f.arguments | tojson) | tojson }}}\n"
        "</tool_call>"
    ),
    "SmolLM2, a list": _family(_OBJECT, "<tool_call>[", ", ", "]</tool_call>"),
    "one call alone": _family(
        "{% if not loop.first %}{{ raise_exception('one call at a time') }}{% endif %}"
        f"<tool_call>\n\n{_OBJECT}</tool_call>"
    ),
    "indented": _family(
        '<tool_call>\n{\n  "name": "{{ f.name }}",\n  "arguments": '
        "{{ f.arguments | tojson(indent=2) }}\n}\n</tool_call>"
    ),
}
GAPS = {
    "Qwen3": ("\n", "\n", "\n"),
    "SmolLM3": ("", "", ""),
    "on one line": (" ", " ", " "),
    "arguments first": ("\n", "\n", "\n"),
    "arguments as text": ("\n", "\n", "\n"),
    "SmolLM2, a list": ("", "", "\n"),
    "one call alone": ("\n\n", "", "\n"),
    "indented": ("\n", "\n", "\n"),
}
"""White space in and between their calls."""
