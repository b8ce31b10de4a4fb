"""The model's state of a kept conversation: put away so that it is of use, and taken out again.

Owns which part of a timeline is worth keeping. A template may write an earlier reply otherwise than
the model did (Qwen's leaves reasoning out), and a recurrent state cannot be taken apart: what is
kept ends where the conversation's next prompt leaves the timeline, so that resuming passes what
follows, one reply at most, and nothing before.
"""

from __future__ import annotations

from itertools import takewhile

from flashmoe.apps.chat.shelf import Kept
from flashmoe.engine import Engine
from flashmoe.errors import ContextError, FlashMoeError, SessionError
from flashmoe.session import Session
from flashmoe.turn import Opening, Turn


def put_away(engine: Engine, session: Session, following: Turn, kept: Kept) -> int:
    """Keep the state that the next turn can begin with; returns its number of tokens.

    ``following`` is the conversation with something more said by the user. Without a prefix cache
    a state further back than the timeline's end would have to be computed again: then the one that
    was kept before stays, which is shorter.

    Raises:
        SessionError: the file cannot be written.
    """
    if not session.ids:
        return 0
    common = _common(engine, session, following)
    if common < len(session.ids):
        if engine.prefixes is None or not common:
            return 0
        _go_back(engine, session, common)
    session.save(kept.timeline)
    return len(session.ids)


def take_out(session: Session, kept: Kept) -> str | None:
    """Go on from the kept state; returns why that cannot be, None where it can.

    The session is empty then, and everything is read anew, which gives the same answers later.
    """
    session.rewind(0)
    if not kept.timeline.exists():
        return None
    try:
        session.load(kept.timeline)
    except (SessionError, ContextError) as error:
        session.rewind(0)
        return str(error)
    return None


def _common(engine: Engine, session: Session, following: Turn) -> int:
    """How many tokens of the timeline the next prompt begins with."""
    try:
        coming = Opening.of(engine, following).ids
    except FlashMoeError:  # it will be refused then, too, with its own message
        return 0
    pairs = takewhile(lambda p: p[0] == p[1], zip(session.ids, coming, strict=False))
    return sum(1 for _ in pairs)


def _go_back(engine: Engine, session: Session, tokens: int) -> None:
    """Have the state after the first ``tokens`` of the timeline, from the prefix cache."""
    last = session.ids[tokens - 1]
    session.rewind(tokens - 1)
    steps = session.generate([last], engine.sampling(temperature=0.0, max_tokens=1))
    for _ in steps:  # a token passes what the cache does not have, and draws one too many
        pass
    session.rewind(tokens)
