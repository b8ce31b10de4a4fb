"""Replies for tests: text and marks cut into ids at will, and their pieces joined again."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from flashmoe.text import Call, Content, Mark, Piece, ReplyParser, Syntax
from flashmoe.text.detokenizer import byte_alphabet

TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
BY_ID = tuple(Mark(tag, index) for index, tag in enumerate(TAGS))
BY_TEXT = tuple(Mark(tag) for tag in TAGS)
SPECIAL = 4
"""The id of a token that the tokenizer calls special and that is no mark."""


class Pieces:
    """A vocabulary made of one reply's own tokens: ids from 5 on are ``tokens`` in turn."""

    decoder: object = MappingProxyType({"type": "ByteLevel"})
    alphabet = MappingProxyType(byte_alphabet())

    def __init__(self, tokens: Sequence[bytes]) -> None:
        spelled = ("".join(self.alphabet[byte] for byte in token) for token in tokens)
        self._tokens = [*TAGS, "<|special|>", *spelled]

    def token(self, id: int) -> str | None:
        return self._tokens[id] if id < len(self._tokens) else None

    def is_special(self, id: int) -> bool:
        return id == SPECIAL


def syntax(form: Any, by_id: bool) -> Syntax:
    return Syntax(*(BY_ID if by_id else BY_TEXT), form)


def parse(parts: Sequence[str | int | bytes], markup: Syntax, **options: Any) -> ReplyParser:
    """A parser that has met the parts (text, bytes, or the id of a tag); ``pieces`` are its."""
    tokens = [part.encode() if isinstance(part, str) else part for part in parts]
    vocabulary = Pieces([token for token in tokens if isinstance(token, bytes)])
    ids, place = [], 5
    for token in tokens:
        ids.append(token if isinstance(token, int) else place)
        place += not isinstance(token, int)
    cut = options.pop("cut", False)
    parser = Parsed(vocabulary, markup, **{"thinking": False, **options})
    parser.pieces = [piece for id in ids for piece in parser.push(id)]
    parser.pieces += parser.finish(cut=cut)
    return parser


class Parsed(ReplyParser):
    pieces: list[Piece]


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces with neighbours of one kind made one."""
    result: list[Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        if isinstance(piece, Call) or type(last) is not type(piece):
            result.append(piece)
        else:
            result[-1] = type(piece)(last.text + piece.text)  # type: ignore[union-attr]
    return result


def content(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Content))
