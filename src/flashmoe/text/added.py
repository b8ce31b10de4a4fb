"""Added tokens: the strings that are one token each, beside what the model's BPE spells.

Owns how tokenizer.json and tokenizer_config.json together name them, as transformers reads the
two; not the search for them in text. Invariant: every id is taken once, in rising order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from flashmoe.errors import StoreError

_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_LISTED = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class AddedToken:
    """One entry of ``added_tokens`` in a tokenizer.json, with its field names."""

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False

    def entry(self) -> dict[str, Any]:
        """The entry as a tokenizer.json has it, except that every token is special."""
        return asdict(self) | {"special": True}


def named_token(config: Mapping[str, Any], name: str) -> str | None:
    """The string of ``bos_token`` or another named token; published as text or as an object."""
    value = config.get(name)
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def added_tokens(
    definition: Mapping[str, Any], config: Mapping[str, Any], vocabulary: Mapping[str, int]
) -> list[AddedToken]:
    """All added tokens, by id.

    The config's ``added_tokens_decoder`` adds to the file's list and overrides its flags. A
    token that the config only names or lists is added, as a special one, when the ``vocabulary``
    of the BPE has it (one that has no id has no row in the model either, and is left out).

    Raises StoreError for an entry that is not one, or two tokens with one id.
    """
    found: dict[str, AddedToken] = {}
    for entry in _entries(definition, config):
        token = _parsed(entry)
        known = found.get(token.content)
        found[token.content] = token if known is None else AddedToken(known.id, *_flags(token))
    for content in _specials(config):
        if content not in found and content in vocabulary:
            found[content] = AddedToken(vocabulary[content], content, special=True)
    return _by_id(found.values())


def _by_id(tokens: Iterable[AddedToken]) -> list[AddedToken]:
    ordered = sorted(tokens, key=lambda token: token.id)
    for left, right in pairwise(ordered):
        if left.id == right.id:
            raise StoreError(
                f"the tokenizer gives id {left.id} to both {left.content!r} and "
                f"{right.content!r}; take the tokenizer files of one checkpoint"
            )
    return ordered


def _flags(token: AddedToken) -> tuple[Any, ...]:
    return tuple(asdict(token).values())[1:]


def _entries(definition: Mapping[str, Any], config: Mapping[str, Any]) -> Iterable[object]:
    listed = definition.get("added_tokens")
    yield from listed if isinstance(listed, list) else ()
    extra = config.get("added_tokens_decoder")
    for key, entry in extra.items() if isinstance(extra, Mapping) else ():
        if isinstance(entry, Mapping) and str(key).isdecimal():
            yield {**entry, "id": int(key)}


def _parsed(entry: object) -> AddedToken:
    fields = entry if isinstance(entry, Mapping) else {}
    token_id, content = fields.get("id"), fields.get("content")
    flags = {name: fields.get(name, False) for name in _FLAGS}
    if (
        type(token_id) is not int
        or not 0 <= token_id < 1 << 32
        or not isinstance(content, str)
        or not content
        or not all(type(flag) is bool for flag in flags.values())
    ):
        raise StoreError(
            f"the tokenizer lists {repr(entry)[:200]} as an added token, which has no usable id, "
            "content or flags; copy tokenizer.json from the checkpoint again"
        )
    return AddedToken(token_id, content, **flags)


def _specials(config: Mapping[str, Any]) -> Iterable[str]:
    for name in _NAMED:
        if (content := named_token(config, name)) is not None:
            yield content
    for name in _LISTED:
        listed = config.get(name) or ()
        values = listed.values() if isinstance(listed, Mapping) else listed
        for value in values if isinstance(values, Iterable) else ():
            content = named_token({"": value}, "")
            if content is not None:
                yield content
