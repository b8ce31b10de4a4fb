"""The tokens that a reply's content is made of, with their probabilities.

Owns the bytes of a token, and which tokens belong to which content: those since the last piece
that was none. Markup (an added token) belongs to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from flashmoe.apps.serve.ask import Token
from flashmoe.step import Step
from flashmoe.text.detokenizer import byte_alphabet
from flashmoe.text.pieces import Content, Piece
from flashmoe.text.tokenizer import Tokenizer

_BYTES = {character: byte for byte, character in byte_alphabet().items()}


class TokenLog:
    """Collects the tokens of one reply."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._markup = frozenset(tokenizer.markup)
        self._pending: list[Token] = []

    def push(self, step: Step, pieces: Sequence[Piece]) -> tuple[Token, ...]:
        """The tokens that the content among ``pieces`` is made of; none where there is none."""
        if step.logprob is not None and self._tokenizer.token(step.id) not in self._markup:
            top = tuple(self._token(*other) for other in step.top_logprobs)
            self._pending.append(self._token(step.id, step.logprob, top))
        if not pieces:
            return ()
        tokens, self._pending = self._pending, []
        return tuple(tokens) if any(isinstance(piece, Content) for piece in pieces) else ()

    def _token(self, id: int, logprob: float, top: tuple[Token, ...] = ()) -> Token:
        data = token_bytes(self._tokenizer, id)
        return Token(id, data.decode(errors="replace"), data, logprob, top)


def token_bytes(tokenizer: Tokenizer, id: int) -> bytes:
    """What a token spells. In a byte-level vocabulary that may be part of a character."""
    spelling = tokenizer.token(id) or ""
    decoder = tokenizer.decoder
    if isinstance(decoder, dict) and decoder.get("type") == "ByteLevel":
        try:
            return bytes(_BYTES[character] for character in spelling)
        except KeyError:  # an added token
            return spelling.encode()
    if len(spelling) == 6 and spelling.startswith("<0x"):
        return bytes([int(spelling[3:5], 16)])
    return spelling.replace("\u2581", " ").encode()
