"""Token ids to text, one id at a time, up to a stop string.

Owns the two ways in which vocabularies spell text (byte-level and SentencePiece) and the text held
back because it is not final yet; not the tokenizer file, nor the search for stop strings
(``text.stops``). Invariant: what ``push`` and ``finish`` return, joined, is ``Tokenizer.decode`` of
the same ids, up to the first stop string; a returned piece never ends inside a character and never
holds a part of what may still become a stop string. Each id costs time in proportion to its own
text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from flashmoe.errors import StoreError
from flashmoe.text.stops import Stops

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_ORDER = ("Replace", "ByteFallback", "Fuse", "Strip")  # the order LLaMA's converters write


class Vocabulary(Protocol):
    """What a detokenizer asks of :class:`flashmoe.text.tokenizer.Tokenizer`."""

    @property
    def decoder(self) -> object: ...  # the "decoder" entry of tokenizer.json

    def token(self, id: int) -> str | None: ...

    def is_special(self, id: int) -> bool: ...


class Assembler(Protocol):
    """Joins vocabulary entries to text; returns what is final."""

    def spelled(self, token: str) -> bytes: ...  # what it stands for within a text

    def push(self, token: str) -> str: ...

    def finish(self) -> str: ...


class Detokenizer:
    """The text of one reply.

    With ``skip_special``, tokens that the tokenizer calls special add nothing. An id without a
    token (padding of the output matrix) adds nothing, as in ``decode``.
    """

    def __init__(
        self, tokenizer: Vocabulary, stop: Sequence[str] = (), *, skip_special: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._assembler = assembler(tokenizer.decoder)
        self._stops = Stops(stop)

    @property
    def stopped(self) -> str | None:
        """The stop string met."""
        return self._stops.met

    def push(self, id: int) -> str:
        """The text that became final with this id; "" after a stop string was met."""
        token = self._tokenizer.token(id)
        if self.stopped is not None or token is None:
            return ""
        if self._skip_special and self._tokenizer.is_special(id):
            return ""
        return self._stops.push(self._assembler.push(token))

    def finish(self, *, cut: bool = False) -> str:
        """What was held back: the reply ends here.

        A reply that was ``cut`` short may end inside a character; that half is left out, where
        it would else be a U+FFFD as in ``decode``.
        """
        if self.stopped is not None:
            return ""
        released = "" if cut else self._stops.push(self._assembler.finish())
        return released + self._stops.flush()


def byte_alphabet() -> dict[int, str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2, Radford 2019).

    Printable Latin-1 bytes stand for themselves; the other 68 take U+0100 onwards, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + index) for index, byte in enumerate(others)
    }


_BYTES = {character: byte for byte, character in byte_alphabet().items()}


class _ByteLevel:
    """UTF-8 in pieces; a token outside the byte alphabet (an added one) is its own UTF-8.

    Bytes that can no longer become a character give U+FFFD, one for each maximal part of a
    sequence (Unicode 15, 3.9), as in Rust's ``from_utf8_lossy``.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def spelled(self, token: str) -> bytes:
        try:
            return bytes(_BYTES[character] for character in token)
        except KeyError:
            return token.encode()

    def push(self, token: str) -> str:
        return self._decoder.decode(self.spelled(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _SentencePiece:
    """Words with a mark (U+2581) for a space, and ``<0x41>`` for single bytes.

    A run of byte tokens is one text when the whole run is UTF-8, else one U+FFFD a byte
    (tokenizers' ByteFallback): it is final only when the run ends. ``lead`` spaces are taken
    from the front of the reply.
    """

    def __init__(self, replacements: Mapping[str, str], *, fallback: bool, lead: int) -> None:
        self._replacements = replacements
        self._fallback, self._lead = fallback, lead
        self._run = bytearray()

    def spelled(self, token: str) -> bytes:
        byte = self._byte(token)
        return self._replaced(token).encode() if byte is None else bytes((byte,))

    def push(self, token: str) -> str:
        byte = self._byte(token)
        if byte is not None:
            self._run.append(byte)
            return ""
        return self._stripped(self._flushed() + self._replaced(token))

    def finish(self) -> str:
        return self._stripped(self._flushed())

    def _replaced(self, token: str) -> str:
        for mark, text in self._replacements.items():
            token = token.replace(mark, text)
        return token

    def _byte(self, token: str) -> int | None:
        found = _BYTE_TOKEN.fullmatch(self._replaced(token)) if self._fallback else None
        return None if found is None else int(found[1], 16)

    def _flushed(self) -> str:
        run, self._run = bytes(self._run), bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return _REPLACEMENT * len(run)

    def _stripped(self, text: str) -> str:
        while self._lead and text:
            if text[0] != " ":
                self._lead = 0
                break
            text, self._lead = text[1:], self._lead - 1
        return text


class _Metaspace:
    """Words with a mark for a space; with ``bare_first`` the first word's marks are dropped."""

    def __init__(self, mark: str, *, bare_first: bool) -> None:
        self._mark, self._bare_first = mark, bare_first

    def spelled(self, token: str) -> bytes:
        return token.replace(self._mark, " ").encode()

    def push(self, token: str) -> str:
        text = token.replace(self._mark, "" if self._bare_first else " ")
        self._bare_first = False
        return text

    def finish(self) -> str:
        return ""


def assembler(decoder: object) -> Assembler:
    """The assembler for the ``decoder`` entry of a tokenizer.json.

    Raises StoreError for a decoder that cannot be followed token by token.
    """
    steps = _steps(decoder)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return _ByteLevel()
    if kinds == ["Metaspace"]:
        bare = steps[0].get("prepend_scheme", "always") != "never"
        return _Metaspace(str(steps[0].get("replacement", "\u2581")), bare_first=bare)
    replacements: dict[str, str] = {}
    lead = 0
    for kind, step in zip(kinds, steps, strict=True):
        if kind == "Replace":
            replacements[_pattern(step)] = str(step.get("content"))
        elif kind == "Strip":
            lead = _lead(step, fused="Fuse" in kinds)
        elif kind not in ("ByteFallback", "Fuse"):
            raise _unsupported(kind)
    if not replacements or kinds != sorted(kinds, key=_ORDER.index):
        raise _unsupported(kinds)
    return _SentencePiece(replacements, fallback="ByteFallback" in kinds, lead=lead)


def _steps(decoder: object) -> list[Mapping[str, object]]:
    entry = decoder if isinstance(decoder, Mapping) else {}
    found = entry.get("decoders") if entry.get("type") == "Sequence" else [entry]
    steps = found if isinstance(found, list) else []
    return [step if isinstance(step, Mapping) else {} for step in steps]


def _pattern(step: Mapping[str, object]) -> str:
    pattern = step.get("pattern")
    text = pattern.get("String") if isinstance(pattern, Mapping) else None
    if not isinstance(text, str) or not text:
        raise _unsupported("Replace by a regular expression")
    return text


def _lead(step: Mapping[str, object], *, fused: bool) -> int:
    start = step.get("start")
    if not fused or step.get("content") != " " or step.get("stop") or not isinstance(start, int):
        raise _unsupported(f"Strip {dict(step)}")
    return start


def _unsupported(what: object) -> StoreError:
    return StoreError(
        f"the tokenizer has the decoder {repr(what)[:200]}, which cannot be followed token by "
        "token; use a checkpoint with a byte-level or SentencePiece tokenizer"
    )
