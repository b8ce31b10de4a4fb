"""Replies to tool requests, with and without the grammar that holds calls to their form.

Owns the asking; what a reply is worth is ``validity``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flashmoe.apps.eval.cases import Case
from flashmoe.apps.eval.validity import Judge, Verdict
from flashmoe.engine import Engine
from flashmoe.errors import InputError
from flashmoe.text.pieces import Call, Content, Piece
from flashmoe.text.template import Segment
from flashmoe.turn import Opening, Reply, Turn

SIDES = ("unconstrained", "constrained")
"""In the order in which they are asked and shown."""


@dataclass(frozen=True)
class Answer:
    """What came of one case: its pieces, tokens, and what they are worth."""

    case: Case
    pieces: tuple[Piece, ...]
    tokens: int
    finish: str
    verdict: Verdict

    @property
    def text(self) -> str:
        """The reply for a reader, a call as its name and arguments."""
        return "".join(
            f"{piece.name}({piece.arguments})" if isinstance(piece, Call) else piece.text
            for piece in self.pieces
            if isinstance(piece, Call | Content)
        )


def opening_of(engine: Engine, case: Case, *, thinking: bool, constrained: bool) -> Opening:
    """The case as ids, checked; a raw prompt's markup counts as the template's own would.

    Raises:
        InputError: the store's template or grammar refuses it; names the case.
    """
    turn = Turn(
        messages=case.messages,
        tools=case.tools,
        tool_choice=case.tool_choice,
        thinking=thinking,
        constrained=constrained,
    )
    try:
        if case.prompt is None:
            return Opening.of(engine, turn)
        ids = engine.tokenizer.encode_segments([Segment(case.prompt, markup=True)])
        begins = engine.syntax.starts_thinking(case.prompt)
        guide = engine.grammars.guide(
            tools=case.tools,
            tool_choice=case.tool_choice,
            parallel_calls=turn.parallel_calls,
            thinking=begins,
            thinking_budget=None,
            form=None,
            constrained=constrained,
        )
        return Opening(turn, tuple(ids), thinking=begins, guide=guide)
    except InputError as error:
        raise type(error)(f"{case.place}: {error}") from error


def ask(
    engine: Engine,
    cases: list[Case],
    judge: Judge,
    sampling: dict[str, Any],
    told: Callable[[int, int], None],
    *,
    thinking: bool,
) -> dict[str, list[Answer]]:
    """Every case on both sides, each in a new timeline; by :data:`SIDES`.

    ``sampling`` replaces fields of the store's own; its seed is that of the first case, and every
    next one has the next, the same on both sides. ``told`` hears how many of how many are done.

    Raises:
        InputError, ContextError: a case that cannot be asked, before any is.
    """
    if engine.syntax.calls is None:
        raise InputError(f"the chat template of {engine.store.path} has no form of tool calls")
    for case in cases:
        judge.check(case)
        opening_of(engine, case, thinking=thinking, constrained=True)
    found: dict[str, list[Answer]] = {side: [] for side in SIDES}
    for side in SIDES:
        for number, case in enumerate(cases):
            told(len(cases) * SIDES.index(side) + number, len(cases) * len(SIDES))
            seeded = {**sampling, "seed": sampling["seed"] + number}
            # Made anew: what binds a reply serves one.
            bound = side == "constrained"
            opening = opening_of(engine, case, thinking=thinking, constrained=bound)
            found[side].append(_answer(engine, case, opening, judge, seeded))
    return found


def _answer(
    engine: Engine, case: Case, opening: Opening, judge: Judge, sampling: dict[str, Any]
) -> Answer:
    reply = Reply(engine, engine.session(), opening, engine.sampling(**sampling))
    pieces = [piece for beat in reply for piece in beat.pieces]
    finish = str(reply.finish_reason)
    verdict = judge.verdict(case, pieces, ended=finish != "length")
    return Answer(case, tuple(pieces), reply.usage.completion_tokens, finish, verdict)
