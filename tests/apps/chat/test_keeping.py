"""The state that is kept is one that the next turn begins with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flashmoe.apps.chat import keeping
from flashmoe.apps.chat.shelf import Kept, Shelf
from flashmoe.engine import Engine
from flashmoe.errors import CancelledError
from flashmoe.options import PrefixCache
from flashmoe.progress import Progress
from flashmoe.session import Session
from flashmoe.text.pieces import Content
from flashmoe.turn import Reply, Turn

LONG = " ".join(f"Letter {n}." for n in range(24))
"""A token a character, of a context of 512."""


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    with Shelf(tmp_path).open("house") as kept:
        yield kept


@pytest.fixture
def engine(store: Path, tmp_path: Path) -> Iterator[Engine]:
    cache = PrefixCache(tmp_path / "prefixes")
    with Engine.open(store, prefix_cache=cache) as engine:
        yield engine


def turn(*said: str) -> Turn:
    roles = ("user", "assistant")
    messages = tuple({"role": roles[n % 2], "content": text} for n, text in enumerate(said))
    return Turn(messages, thinking=False)


def say(engine: Engine, session: Session, *said: str) -> tuple[str, int]:
    """A reply, and how many tokens passed for it."""
    passed: list[Progress] = []
    sampling = engine.sampling(temperature=0.0, max_tokens=10)
    reply = Reply(engine, session, turn(*said), sampling, passed.append)
    pieces = [piece for beat in reply for piece in beat.pieces]
    last = passed[-1]
    content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
    return content, last.total_tokens - last.cached_tokens


def test_the_next_turn_begins_where_the_kept_one_ended(engine: Engine, kept: Kept) -> None:
    session = engine.session()
    answer, first = say(engine, session, LONG)
    tokens = keeping.put_away(engine, session, turn(LONG, answer, "-"), kept)
    assert first - 70 < tokens < first + 20
    expected = say(engine, session, LONG, answer, "And then?")
    session.rewind(0)
    assert keeping.take_out(session, kept) is None
    assert len(session.ids) == tokens
    again = say(engine, session, LONG, answer, "And then?")
    assert again[0] == expected[0] and again[1] < first / 2


def test_a_timeline_that_goes_on_as_it_is_is_kept_to_its_end(engine: Engine, kept: Kept) -> None:
    """As those of templates do that write a reply just as it came."""
    session = engine.session()
    ids = engine.tokenizer.encode_segments(engine.template.render(turn(LONG, "a", "b").messages))
    list(session.generate(ids[:100], engine.sampling(max_tokens=1)))
    session.rewind(100)
    assert keeping.put_away(engine, session, turn(LONG, "a", "b"), kept) == 100
    assert kept.timeline.exists()


def test_without_a_prefix_cache_what_was_kept_stays(store: Path, kept: Kept) -> None:
    with Engine.open(store) as engine:
        session = engine.session()
        answer, _ = say(engine, session, "Hello")
        kept.timeline.write_bytes(b"before")
        assert keeping.put_away(engine, session, turn("Hello", answer, "-"), kept) == 0
        assert kept.timeline.read_bytes() == b"before"
        session.rewind(0)
        assert keeping.put_away(engine, session, turn("x"), kept) == 0, "there is nothing"


def test_what_cannot_be_used_is_told_and_leaves_the_session_empty(
    engine: Engine, kept: Kept
) -> None:
    session = engine.session()
    say(engine, session, "Hello")
    assert keeping.take_out(session, kept) is None and session.ids == ()
    kept.timeline.write_bytes(b"nonsense")
    told = keeping.take_out(session, kept)
    assert told is not None and "timeline.safetensors" in told and session.ids == ()


def test_a_conversation_that_the_template_refuses_is_not_kept(engine: Engine, kept: Kept) -> None:
    session = engine.session()
    say(engine, session, LONG)
    assert keeping.put_away(engine, session, Turn(({"role": "bishop", "content": ""},)), kept) == 0


def test_a_reply_that_was_cancelled_can_be_kept_from(engine: Engine, kept: Kept) -> None:
    session = engine.session()
    reply = Reply(engine, session, turn(LONG), engine.sampling(max_tokens=50))
    with pytest.raises(CancelledError):
        for _ in reply:
            session.cancel()
    assert keeping.put_away(engine, session, turn(LONG, "cut", "-"), kept) > 0
