"""A vocabulary as grammars want it: what bytes each token stands for.

Owns llguidance's view of a tokenizer; not grammars. Invariant: a structural token (one that plain
text never yields, ``Tokenizer.structure``) matches no text, only its own id, and an id without a
token matches nothing at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import llguidance

from flashmoe.errors import InputError, StoreError
from flashmoe.text.detokenizer import assembler
from flashmoe.text.template import Segment
from flashmoe.text.tokenizer import Tokenizer

_SLICES = [r'[^"\\\x00-\x1F\x7F]{1,10}']
"""Tokens that match this are looked at together wherever a text may go on with any of them, which
is what inside of strings takes most of a mask's time: 5 ms without and 1 ms with it, for 248,000
tokens. Each such set takes another 15 MB; the three that llguidance adds gain little."""

_NEEDED = frozenset({0x09, 0x0A, *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1)})
"""Bytes without which text could come to where it can neither end nor go on. UTF-8's others begin
a character, control or beyond U+3FFFF, in whose place another always fits, unless a form spells
just that one (:meth:`Vocabulary.unspelled`): SmolLM2's vocabulary lacks eight of them."""

BYTES_A_TOKEN = 320
"""What :class:`Vocabulary` takes in memory, at most, while it is made (measured: 280)."""


class Vocabulary:
    """The tokens below ``size``; ``stop_ids`` are what may end a reply.

    Making it takes a second for 248,000 tokens. Safe to share between threads.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int], size: int) -> None:
        """Raises StoreError for a vocabulary that cannot spell every byte: text would come to
        places where it can neither end nor go on."""
        self.size = size
        self.stop_ids = tuple(sorted(id for id in stop_ids if id < size))
        if not self.stop_ids:
            raise StoreError(
                "the model names no token that ends a reply, so that a form could never be whole: "
                "put eos_token_id into the checkpoint's generation_config.json and convert again"
            )
        self._tokenizer = tokenizer
        structure = {id: text for id, text in tokenizer.structure.items() if id < size}
        spelled = assembler(tokenizer.decoder).spelled
        tokens = [_bytes_of(tokenizer.token(id), structure.get(id), spelled) for id in range(size)]
        self._by_byte = {
            token[0]: id
            for id, token in reversed(list(enumerate(tokens)))
            if len(token) == 1 and id not in structure
        }
        if missing := _NEEDED - self._by_byte.keys():
            raise StoreError(
                f"the tokenizer has no token for {len(missing)} of the {len(_NEEDED)} bytes that "
                f"texts are made of (byte {min(missing)} first), so that a reply cannot be bound "
                "to a form: use a checkpoint with a byte-level or byte-fallback tokenizer"
            )
        special = sorted({*structure, *self.stop_ids})
        wrapper = llguidance.TokenizerWrapper(
            _Source(tokens, special, self.stop_ids, self._encoded)
        )
        self.backend = llguidance.LLTokenizer(
            wrapper, n_vocab=size, eos_token=list(self.stop_ids), slices=_SLICES
        )
        wrapper.tokens = wrapper._gtokenizer.tokens = []  # it has its own copy by now

    def ids_of(self, text: str) -> list[int]:
        """Ids that spell just ``text``, structural tokens included."""
        ids = self._tokenizer.encode_segments([Segment(text, markup=True)])
        return ids if self._tokenizer.decode(ids) == text else self._single(text.encode())

    @property
    def lacking(self) -> str | None:
        """The characters that no tokens spell, as the inner part of a class of a regular
        expression; None where there are none."""
        controls = [rf"\x{{{byte:X}}}" for byte in range(0x80) if byte not in self._by_byte]
        planes = [
            rf"\x{{{lead - 0xF0 << 18:X}}}-\x{{{min((lead - 0xEF << 18) - 1, 0x10FFFF):X}}}"
            for lead in range(0xF1, 0xF5)
            if lead not in self._by_byte
        ]
        return "".join(controls + planes) or None

    def unspelled(self, text: str) -> str | None:
        """The first character of ``text`` that no tokens spell; None where there is none."""
        known = self._by_byte.keys()
        return next((letter for letter in text if not known >= set(letter.encode())), None)

    def _encoded(self, data: bytes) -> list[int]:
        """Ids of plain text within a reply, as the model would write them.

        A tokenizer that marks the beginning of a text as one of a word cannot be asked for less.
        """
        try:
            ids = self._tokenizer.encode_segments([Segment(data.decode(), markup=False)])
        except (UnicodeDecodeError, InputError):
            return self._single(data)
        return ids if self._same(ids, data) else self._single(data)

    def _same(self, ids: list[int], data: bytes) -> bool:
        spelled = assembler(self._tokenizer.decoder).spelled
        return b"".join(spelled(self._tokenizer.token(id) or "") for id in ids) == data

    def _single(self, data: bytes) -> list[int]:
        """A byte each, up to the first that has no token."""
        known = itertools.takewhile(self._by_byte.__contains__, data)
        return [self._by_byte[byte] for byte in known]


class _Source:
    """What ``llguidance.TokenizerWrapper`` asks of a tokenizer."""

    bos_token_id = None

    def __init__(
        self,
        tokens: list[bytes],
        special_token_ids: list[int],
        stop_ids: tuple[int, ...],
        encode: Callable[[bytes], list[int]],
    ) -> None:
        self.tokens, self.special_token_ids = tokens, special_token_ids
        self.eos_token_id = stop_ids[0]
        self._encode = encode

    def __call__(self, data: bytes) -> list[int]:
        return self._encode(data)


def _bytes_of(token: str | None, structural: str | None, spelled: Callable[[str], bytes]) -> bytes:
    if structural is not None:
        return structural.encode()
    return b"" if token is None else spelled(token)
