"""A conversation to the text of a prompt, in segments of markup and content.

Owns the rendering of chat templates; not ids. Invariant: a markup segment is an added token
that the template itself wrote; nothing in a message, a tool or an option can make one.

How: before rendering, a private character (one that occurs nowhere in the input) is put inside
every place of the caller's text where a token could begin or end; what the template then joins
cannot spell a token out of the caller's text. Afterwards the rendering is split at the tokens,
and the private character is taken out of the rest.

Rendering is transformers' (5.x): its Jinja options, filters and functions, and its treatment of
messages. ``render_text`` equals ``apply_chat_template(tokenize=False)`` for content without
markup. Where a reply's reasoning still stands in its content (``<think>…</think>``), it is moved
to ``reasoning_content`` first, because a template could not find the broken tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashmoe.errors import InputError, TemplateError
from flashmoe.text.jinja import compile_template, render

_DEPTH_LIMIT = 64  # nesting of a message or a tool schema; real ones stay under 20
_PRIVATE_USE = range(0xF0000, 0xFFFFE)  # plane 15
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # transformers' order
_KNOWN_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_NAMING_KEYS = frozenset({"arguments", "properties"})  # their keys are the caller's own words


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt. Added tokens count in ``markup`` and nowhere else."""

    text: str
    markup: bool


class ChatTemplate:
    """A compiled chat template. ``markup`` is ``Tokenizer.markup``: the added tokens."""

    def __init__(
        self, source: str, *, bos_token: str = "", eos_token: str = "", markup: Sequence[str]
    ) -> None:
        """Raises TemplateError for a template that does not compile."""
        self._source = source
        self._template = compile_template(source)
        self._named = {"bos_token": bos_token, "eos_token": eos_token}
        self._breaker = _Breaker(token for token in markup if token.strip())

    @property
    def takes_tools(self) -> bool:
        """Whether the template writes tools into the prompt."""
        return "tools" in self._source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        **extra: Any,
    ) -> list[Segment]:
        """The prompt's segments, in order; none is empty.

        ``messages`` and ``tools`` are JSON data in the OpenAI shape, except that a tool call's
        ``arguments`` are an object, not its JSON text, where the template wants to walk it.
        ``enable_thinking`` None leaves the template's own default; ``extra`` are further
        variables for the template.

        Raises InputError for what is no conversation, TemplateError for what the template
        rejects, with its own words.
        """
        conversation = [self._prepared(message) for message in messages]
        if not conversation:
            raise InputError("the conversation has no messages; give at least one")
        options: dict[str, Any] = {"documents": None, **extra}
        if enable_thinking is not None:
            options["enable_thinking"] = enable_thinking
        given = {"messages": conversation, "tools": tools, **options}
        sentinel = self._breaker.sentinel(_strings(given), self._source)
        variables = {
            **self._named,
            "add_generation_prompt": add_generation_prompt,
            **{name: self._breaker.broken(value, sentinel) for name, value in given.items()},
        }
        try:
            return self._breaker.segments(render(self._template, self._source, variables), sentinel)
        except TemplateError as error:
            raise TemplateError(str(error).replace(sentinel, "")) from error

    def render_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        **extra: Any,
    ) -> str:
        """The segments of :meth:`render`, joined."""
        segments = self.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
            **extra,
        )
        return "".join(segment.text for segment in segments)

    def _prepared(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message without nulls, its reasoning where templates look for it."""
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(
                f"message {str(message)[:200]!r} is not an object with a role; "
                'give objects such as {"role": "user", "content": "…"}'
            )
        prepared = {key: value for key, value in message.items() if value is not None}
        present = (prepared[key] for key in _REASONING_KEYS if key in prepared)
        reasoning = next(present, None)
        content = prepared.get("content")
        if reasoning is None and isinstance(content, str) and message["role"] == "assistant":
            if "</think>" not in content or "</think>" not in self._source:
                return prepared
            before, _, after = content.rpartition("</think>")
            prepared["content"] = after.lstrip("\n")
            if "reasoning_content" not in self._source:  # a template that drops past reasoning
                return prepared
            first = before.split("</think>")[0].rstrip("\n")
            reasoning = first.split("<think>")[-1].lstrip("\n")
        if reasoning is not None:
            prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
        return prepared


class _Breaker:
    """Keeps the caller's text from spelling tokens.

    A token that the caller's text had a part in would begin there, end there, or lie around it.
    The first two are stopped by a sentinel after every character that begins a token and before
    every one that ends one. The third needs a template that makes tags of the caller's names
    (``'<' + name + '>'``): names that are a token's inner word get a sentinel too. Letters
    and white space that begin or end a token are left alone, or templates could not compare roles
    and trim texts; such tokens are broken where they stand whole.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = sorted(set(tokens), key=len, reverse=True)
        self._opening = _one_of(token[0] for token in self._tokens)
        self._closing = _one_of(token[-1] for token in self._tokens)
        lettered = [t for t in self._tokens if not self._opening.match(t)]
        self._whole = re.compile("|".join(map(re.escape, lettered)) or "(?!)")
        self._split = re.compile(f"({'|'.join(map(re.escape, self._tokens)) or '(?!)'})")
        self._inner_words = {_inner_word(token) for token in self._tokens} - {""}

    def sentinel(self, strings: Iterable[str], source: str) -> str:
        """A private character that occurs in none of the strings."""
        used = set(source).union(*strings, *self._tokens)
        for point in _PRIVATE_USE:
            if chr(point) not in used:
                return chr(point)
        raise InputError("the conversation uses every private character; remove one of U+F0000…")

    def broken(self, value: Any, sentinel: str, *, depth: int = 0, names: bool = False) -> Any:
        """A copy of JSON data in which no string can become a token."""
        if depth > _DEPTH_LIMIT:
            raise InputError(f"a message or tool is nested over {_DEPTH_LIMIT} deep; flatten it")
        if isinstance(value, str):
            return self._broken_text(value, sentinel)
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            copy: dict[str, Any] = {}
            for key, item in value.items():
                copy_key = (self._broken_name if names else self._broken_text)(key, sentinel)
                if isinstance(item, str) and (key == "name" or _is_odd_role(key, item)):
                    copy[copy_key] = self._broken_name(item, sentinel)
                else:
                    inner = key in _NAMING_KEYS
                    copy[copy_key] = self.broken(item, sentinel, depth=depth + 1, names=inner)
            return copy
        if isinstance(value, list | tuple):
            return [self.broken(item, sentinel, depth=depth + 1, names=names) for item in value]
        raise InputError(f"a message or tool holds {repr(value)[:80]}; give plain JSON data")

    def segments(self, rendered: str, sentinel: str) -> list[Segment]:
        """The rendering in segments, without the sentinel."""
        parts = self._split.split(rendered)
        pieces = (
            Segment(part.replace(sentinel, ""), markup=bool(index % 2))
            for index, part in enumerate(parts)
        )
        return [piece for piece in pieces if piece.text]

    def _broken_text(self, text: str, sentinel: str) -> str:
        text = self._whole.sub(lambda found: found[0][0] + sentinel + found[0][1:], text)
        text = self._opening.sub(rf"\g<0>{sentinel}", text)
        return self._closing.sub(rf"{sentinel}\g<0>", text)

    def _broken_name(self, name: str, sentinel: str) -> str:
        if _inner_word(name) in self._inner_words:
            return sentinel.join(name)
        return self._broken_text(name, sentinel)


def _one_of(characters: Iterable[str]) -> re.Pattern[str]:
    marks = {mark for mark in characters if not mark.isalnum() and not mark.isspace()}
    return re.compile(f"[{re.escape(''.join(sorted(marks)))}]" if marks else "(?!)")


def _inner_word(text: str) -> str:
    return re.sub(r"^[\W_]+|[\W_]+$", "", text)


def _is_odd_role(key: str, value: str) -> bool:
    return key == "role" and value not in _KNOWN_ROLES


def _strings(value: Any) -> Iterator[str]:
    """Every string in JSON data, keys included; deeper than the limit is left to ``broken``."""
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, str):
            yield item
        elif depth <= _DEPTH_LIMIT and isinstance(item, Mapping):
            if not all(isinstance(key, str) for key in item):
                raise InputError("a message or tool has a key that is not text; give JSON data")
            yield from item
            pending += [(inner, depth + 1) for inner in item.values()]
        elif depth <= _DEPTH_LIMIT and isinstance(item, list | tuple):
            pending += [(inner, depth + 1) for inner in item]
