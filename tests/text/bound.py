"""Replies drawn from noise under a guide: what a model without any sense may say at most."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from flashmoe.text import Tokenizer
from flashmoe.text.grammar import Grammars
from flashmoe.text.guide import Guide
from flashmoe.text.syntax import Mark, Syntax

TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def syntax_of(tokenizer: Tokenizer, calls: str) -> Syntax:
    return Syntax(*(Mark.of(tag, tokenizer) for tag in TAGS), calls)  # type: ignore[arg-type]


def grammars_of(tokenizer: Tokenizer, calls: str = "xml") -> Grammars:
    stops = tokenizer.stop_ids
    return Grammars(tokenizer, syntax_of(tokenizer, calls), stops, tokenizer.vocab_size)


def drawn(
    guide: Guide,
    tokenizer: Tokenizer,
    seed: int = 0,
    *,
    begin: tuple[int, ...] = (),
    most: int = 500,
) -> tuple[list[int], bool]:
    """Ids drawn from noise that likes to close what is open, and whether they came to an end."""
    noise = np.random.default_rng(seed)
    likes = np.zeros(tokenizer.vocab_size)
    for id in range(tokenizer.vocab_size):
        if (tokenizer.token(id) or "")[:1] in ('"', "}", "]", "<", "Ċ"):
            likes[id] = 3
    likes[list(tokenizer.stop_ids)] = 6
    ids = list(begin)
    for id in begin:
        guide.accept(id)
    while len(ids) < most:
        mask = guide.mask()
        scores = noise.normal(size=tokenizer.vocab_size) + likes
        if mask is not None:
            scores[~mask] = -np.inf
        id = int(np.argmax(scores))
        ids.append(id)
        if id in tokenizer.stop_ids:
            return ids, True
        guide.accept(id)
    return ids, False


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    function = {"name": name} if parameters is None else {"name": name, "parameters": parameters}
    return {"type": "function", "function": function}


def listed(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    """The schema of an object with these properties, all required unless said otherwise."""
    wanted = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": wanted}


NAMES = st.text("abcXYZ_09-", min_size=1, max_size=8)
_TEXTS = st.one_of(st.sampled_from(["12", "true", "null", "a b", "é", '"', "1\n2"]), NAMES)
_PATTERNS = ("^[a-z]{2,5}$", "[0-9]", "^x", "z$", "^(?:red|green)$", "^a/b$", r"^\d{4}$")
_FORMATS = ("date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "int32")


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(("plain", "length", "pattern", "format", "enum", "const")))
    if kind == "length":
        least = draw(st.integers(0, 4))
        return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 9))}
    if kind == "pattern":
        return {"type": "string", "pattern": draw(st.sampled_from(_PATTERNS))}
    if kind == "format":
        return {"type": "string", "format": draw(st.sampled_from(_FORMATS))}
    if kind == "enum":
        return {
            "type": "string",
            "enum": draw(st.lists(_TEXTS, min_size=1, max_size=3, unique=True)),
        }
    return {"const": draw(_TEXTS)} if kind == "const" else {"type": "string"}


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": draw(st.sampled_from(("integer", "number")))}
    low = draw(st.integers(-300, 300))
    if draw(st.booleans()):
        schema["minimum"] = low
    if draw(st.booleans()):
        schema["maximum"] = low + draw(st.integers(0, 500))
    return schema


_PLAIN = st.sampled_from(
    [{"type": "boolean"}, {"type": "null"}, {"enum": [1, "b", None, 2.5, True]}, {"const": 7}, {}]
)


def _larger(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    arrays = st.builds(
        lambda items, least, more: {
            "type": "array", "items": items, "minItems": least, "maxItems": least + more,
        },
        inner, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip
    either = st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3))
    return st.one_of(arrays, objects(inner), either)


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, inner, max_size=3))
    required = [name for name in properties if draw(st.booleans())]
    return listed(properties, required)


UNIONS = st.sampled_from(
    [
        {"type": ["string", "null"]},
        {"type": ["integer", "string"], "minimum": 5},
        {"type": ["string", "boolean"], "maxLength": 3},
        {"anyOf": [{"type": "string"}, {"type": "integer", "maximum": 3}]},
        {"anyOf": [{"type": "string", "pattern": "^[a-z]+$"}, {"enum": [3, False]}]},
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]},
        {"anyOf": [{"type": "string"}, {"const": None}]},
    ]
)
SCHEMAS = st.recursive(st.one_of(strings(), numbers(), _PLAIN, UNIONS), _larger, max_leaves=6)
"""Schemas that some value fits, of all that can be enforced."""
