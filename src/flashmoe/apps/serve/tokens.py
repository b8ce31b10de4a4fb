"""The tokens that a reply's content is made of, with their probabilities.

Owns which tokens belong to which content: those since the last piece that was none. Tokens that
end the reply, or part reasoning from it, belong to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from flashmoe.apps.serve.ask import Token
from flashmoe.engine import Engine
from flashmoe.step import Step
from flashmoe.text.detokenizer import assembler
from flashmoe.text.pieces import Content, Piece


class TokenLog:
    """Collects the tokens of one reply."""

    def __init__(self, engine: Engine) -> None:
        self._tokenizer = engine.tokenizer
        self._spelled = assembler(engine.tokenizer.decoder).spelled
        marks = (engine.syntax.think_open, engine.syntax.think_close)
        self._left_out = {mark.id for mark in marks if mark is not None} | engine.stop_ids
        self._pending: list[Token] = []

    def push(self, step: Step, pieces: Sequence[Piece]) -> tuple[Token, ...]:
        """The tokens that the content among ``pieces`` is made of; none where there is none."""
        if step.logprob is not None and step.id not in self._left_out:
            top = tuple(self._token(*other) for other in step.top_logprobs)
            self._pending.append(self._token(step.id, step.logprob, top))
        if not pieces:
            return ()
        tokens, self._pending = self._pending, []
        return tuple(tokens) if any(isinstance(piece, Content) for piece in pieces) else ()

    def _token(self, id: int, logprob: float, top: tuple[Token, ...] = ()) -> Token:
        data = self._spelled(self._tokenizer.token(id) or "")
        return Token(id, data.decode(errors="replace"), data, logprob, top)
