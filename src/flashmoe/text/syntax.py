"""The markup of a model's replies: how it thinks and how it calls tools.

Owns which tags these are, for a chat template and a vocabulary, and which form of call the
template writes; not the reading of replies (``text.parser``) nor what may be written next
(grammars). Invariant: a mark has an id where the vocabulary has it as an added token, and there
only that id is the mark; elsewhere its text is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, TypeAlias

from flashmoe.errors import InputError, TemplateError
from flashmoe.text import call_json, call_xml
from flashmoe.text.pieces import Call
from flashmoe.text.template import ChatTemplate, Segment
from flashmoe.text.tokenizer import Tokenizer

CallForm: TypeAlias = Literal["xml", "json"]
"""``xml``: ``<function=NAME>`` and ``<parameter=KEY>`` with raw values, as Qwen3-Coder and Qwen3.5
write them. ``json``: ``{"name": …, "arguments": {…}}``, as Hermes, Qwen2.5 and Qwen3 do."""

_THINK = "<think>", "</think>"
_CALL = "<tool_call>", "</tool_call>"
_CALLED = re.compile(r"(\s*)<tool_call>(\s*)(.*?)(\s*)</tool_call>", re.DOTALL)
_READ: Mapping[CallForm, Callable[..., tuple[list[Call], str]]] = {
    "xml": call_xml.read_calls,
    "json": call_json.read_calls,
}
_PROBE = Call("probe", '{"key": "value"}')


@dataclass(frozen=True)
class Gaps:
    """White space that a template writes within a call, behind its opening and before its closing
    mark, and between two calls."""

    after_open: str = "\n"
    before_close: str = "\n"
    between: str = "\n"


@dataclass(frozen=True)
class Mark:
    """A tag. ``id`` where it is an added token; None where it is spelled in ordinary tokens."""

    text: str
    id: int | None = None

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer) -> Mark:
        """The mark as this vocabulary has it."""
        return cls(text, tokenizer.id_of(text) if text in tokenizer.markup else None)


@dataclass(frozen=True)
class Syntax:
    """Both marks of a pair are there or neither is; ``calls`` is None where there are none.

    ``gaps`` matter to who writes calls. Who reads them takes any white space there.
    """

    think_open: Mark | None = None
    think_close: Mark | None = None
    call_open: Mark | None = None
    call_close: Mark | None = None
    calls: CallForm | None = None
    gaps: Gaps = Gaps()

    @classmethod
    def of(cls, source: str | None, tokenizer: Tokenizer) -> Syntax:
        """The syntax of replies to prompts of the chat template ``source``.

        Reasoning is marked where the template knows ``</think>``. The form of a call is the one
        that the template writes when it is given one. A template that has no word on tools (of
        SmolLM2, of Gemma 2) leaves it to the prompt to explain them, and Hermes' JSON is what
        most models have seen: that is its form. One that writes calls in a form of its own has
        none here: its calls are content. Without a template there is no markup.
        """
        if source is None:
            return cls()
        calls, gaps = _written_form(source)
        opens, closes = (Mark.of(tag, tokenizer) if _THINK[1] in source else None for tag in _THINK)
        starts, ends = (Mark.of(tag, tokenizer) if calls else None for tag in _CALL)
        return cls(opens, closes, starts, ends, calls, gaps)

    @property
    def thought_end(self) -> str:
        """What a template writes between reasoning and answer; "" where nothing is reasoned."""
        return f"\n{self.think_close.text}\n\n" if self.think_close else ""

    def starts_thinking(self, prompt: str | Sequence[Segment]) -> bool:
        """Whether the reply to a rendered prompt begins inside reasoning.

        In segments of a vocabulary that has the tags as added tokens, the last one in the markup
        decides: what the caller's texts say counts for nothing. Elsewhere the prompt must end
        with the opening tag, white space aside, which only a template that leaves it open writes
        there.
        """
        if self.think_open is None or self.think_close is None:
            return False
        opening, closing = self.think_open.text, self.think_close.text
        if not isinstance(prompt, str) and self.think_open.id is not None:
            marks = [segment.text for segment in prompt if segment.markup]
            last = next((mark for mark in reversed(marks) if mark in (opening, closing)), None)
            return last == opening
        text = prompt if isinstance(prompt, str) else "".join(piece.text for piece in prompt)
        return text.rstrip().endswith(opening)


def _written_form(source: str) -> tuple[CallForm | None, Gaps]:
    """The form in which a template writes calls, which is the one that reads them back; some want
    the arguments as JSON text, some take one call at a time."""
    if "tools" not in source and "tool_calls" not in source:
        return "json", Gaps()
    template = ChatTemplate(source, markup=())
    forms: tuple[dict[str, str] | str, ...] = ({"key": "value"}, _PROBE.arguments)
    for count, arguments in product((2, 1), forms):
        try:
            text = template.render_text(_probe(arguments, count), add_generation_prompt=False)
        except (TemplateError, InputError):
            continue  # not a form that it takes
        written = _CALLED.findall(text)
        for form, read in _READ.items():
            bodies = [read(body, {}, closed=True) for _, _, body, _ in written]
            calls = [call for found, _ in bodies for call in found]
            if calls == [_PROBE] * count and not any(rest.strip() for _, rest in bodies):
                _, after_open, _, before_close = written[0]
                return form, Gaps(after_open, before_close, written[-1][0] if written[1:] else "\n")
    return None, Gaps()


def _probe(arguments: dict[str, str] | str, count: int) -> list[dict[str, Any]]:
    function = {"name": _PROBE.name, "arguments": arguments}
    calls = [
        {"id": f"probe0000{index}", "type": "function", "function": function}
        for index in range(count)
    ]
    return [
        {"role": "user", "content": "-"},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
