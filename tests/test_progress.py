"""Progress of prompts and their cancelling: what is told, what ends, and what stays."""

import threading
from itertools import pairwise

import numpy as np
import pytest

from flashmoe.engine import Engine
from flashmoe.errors import CancelledError
from flashmoe.options import Budget, Runtime, Sampling
from flashmoe.progress import Journey, Progress
from tests.synthetic import HYBRID, write_store

IDS = [int(i) for i in np.random.default_rng(2).integers(0, 96, 150)]
CHUNK, LAYERS = 64, HYBRID.layers
EVENTS = 1 + 3 * LAYERS
GREEDY = Sampling(temperature=0, max_tokens=5)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("s") / "store", HYBRID)


@pytest.fixture(params=[None, HYBRID.experts.top_k], ids=["all in memory", "three slots"])
def engine(path, request):
    budget, runtime = Budget(slots=request.param), Runtime(chunk_tokens=CHUNK)
    with Engine.open(path, budget=budget, runtime=runtime) as engine:
        yield engine


def ids_of(steps):
    return [step.id for step in steps]


class Ender:
    """Ends a prompt at its n-th event: from another thread, or by raising ``error``."""

    def __init__(self, session, event, error=None):
        self.session, self.event, self.error = session, event, error
        self.seen = []

    def __call__(self, progress):
        self.seen.append(progress)
        if len(self.seen) != self.event:
            return
        if self.error is not None:
            raise self.error
        thread = threading.Thread(target=self.session.cancel)
        thread.start()
        thread.join()


def test_rate_and_time_left_follow_what_has_passed():
    half = Progress(done_tokens=60.0, total_tokens=100, cached_tokens=20, elapsed=2.0)
    assert half.tokens_per_second == 20 and half.seconds_left == 2
    begun = Progress(20.0, 100, 20, 0.001)
    assert begun.tokens_per_second == 0 and begun.seconds_left is None
    assert Progress(20.0, 100, 20, 0.0).seconds_left is None
    assert Progress(100.0, 100, 100, 0.0).seconds_left == 0


def test_layers_of_a_chunk_count_as_parts_of_its_tokens():
    seen: list[Progress] = []
    journey = Journey(110, 4, seen.append, cached_tokens=10)
    journey.begin()
    journey.layer(60, 0)
    for done in (1, 2, 3):
        journey.layer(60, done)
    journey.chunk(60)
    journey.layer(40, 1)
    journey.chunk(40)
    assert [one.done_tokens for one in seen] == [10, 25, 40, 55, 70, 80, 110]
    assert {(one.total_tokens, one.cached_tokens) for one in seen} == {(110, 10)}
    assert all(a.elapsed <= b.elapsed for a, b in pairwise(seen))


@pytest.mark.parametrize("call", ["generate", "logits"])
def test_every_layer_of_the_prompt_is_told_and_nothing_of_the_reply(engine, call):
    seen: list[Progress] = []
    session = engine.session()
    if call == "generate":
        assert len(list(session.generate(IDS, GREEDY, on_progress=seen.append))) == 5
    else:
        assert len(session.logits(IDS, on_progress=seen.append)) == len(IDS)
    assert len(seen) == EVENTS
    done = [one.done_tokens for one in seen]
    assert done[0] == 0 and done[-1] == len(IDS) and all(a < b for a, b in pairwise(done))
    assert done[LAYERS] == CHUNK and done[1] == CHUNK / LAYERS
    assert seen[0].elapsed < seen[1].elapsed and seen[1].tokens_per_second > 0
    assert seen[-1].seconds_left == 0 < seen[-2].seconds_left


def test_watching_does_not_change_the_answer(engine):
    plain = engine.session().logits(IDS)
    np.testing.assert_array_equal(engine.session().logits(IDS, on_progress=str), plain)


def test_the_token_that_had_not_passed_yet_is_part_of_the_next_prompt(engine):
    session, seen = engine.session(), []
    list(session.generate(IDS[:9], GREEDY))
    list(session.generate(IDS[9:20], GREEDY, on_progress=seen.append))
    assert seen[-1].total_tokens == seen[-1].done_tokens == 12


@pytest.mark.parametrize("event", [1, 2, LAYERS, LAYERS + 1, LAYERS + 2, 2 * LAYERS, EVENTS - 1])
def test_a_cancelled_prompt_keeps_its_chunks_and_goes_on(engine, event):
    wanted = ids_of(engine.session().generate(IDS, GREEDY))
    session = engine.session()
    ender = Ender(session, event)
    with pytest.raises(CancelledError, match="tokens of the timeline, which stay"):
        list(session.generate(IDS, GREEDY, on_progress=ender))
    assert len(ender.seen) == event  # not a layer more
    whole_chunks = (event - 1) // LAYERS * CHUNK
    assert session.ids == tuple(IDS[:whole_chunks])
    rest = session.generate(IDS[len(session.ids) :], GREEDY)
    assert ids_of(rest) == wanted
    assert session.ids == (*IDS, *wanted)


def test_the_logits_after_a_cancel_are_those_of_an_undisturbed_timeline(engine):
    wanted = engine.session().logits(IDS)
    session = engine.session()
    with pytest.raises(CancelledError):
        session.logits(IDS, on_progress=Ender(session, 2 * LAYERS))
    kept = len(session.ids)
    assert kept == CHUNK
    np.testing.assert_array_equal(session.logits(IDS[kept:]), wanted[kept:])


def test_what_on_progress_raises_cancels(engine):
    wanted = engine.session().logits(IDS)
    for event in (1, 3, LAYERS + 1):
        session = engine.session()
        ender = Ender(session, event, ValueError("enough"))
        with pytest.raises(CancelledError, match="enough") as caught:
            session.logits(IDS, on_progress=ender)
        assert isinstance(caught.value.__cause__, ValueError)
        assert len(session.ids) == (CHUNK if event > LAYERS else 0)
        kept = len(session.ids)
        np.testing.assert_array_equal(session.logits(IDS[kept:]), wanted[kept:])
    session, own = engine.session(), CancelledError("my own")
    with pytest.raises(CancelledError, match="my own") as caught:
        session.logits(IDS, on_progress=Ender(session, 2, own))
    assert caught.value is own
    with pytest.raises(KeyboardInterrupt):
        session.logits(IDS, on_progress=Ender(session, 2, KeyboardInterrupt()))
    assert session.ids == ()


def test_raising_when_all_has_passed_loses_nothing(engine):
    session = engine.session()
    with pytest.raises(CancelledError):
        list(session.generate(IDS, GREEDY, on_progress=Ender(session, EVENTS, ValueError())))
    assert session.ids == tuple(IDS)
    wanted = ids_of(engine.session().generate(IDS, GREEDY))
    assert ids_of(session.generate((), GREEDY)) == wanted


def test_a_cancel_where_nothing_runs_affects_nothing_later(engine):
    wanted = ids_of(engine.session().generate(IDS, GREEDY))
    session = engine.session()
    session.cancel()
    assert ids_of(session.generate(IDS, GREEDY)) == wanted
    session.cancel()
    session.cancel()
    assert len(session.logits(IDS[:3])) == 3


def test_a_reply_is_cancelled_before_it_begins_and_between_its_tokens(engine):
    wanted = ids_of(engine.session().generate(IDS[:9], GREEDY))
    session = engine.session()
    reply = session.generate(IDS[:9], GREEDY)
    session.cancel()
    with pytest.raises(CancelledError):
        next(reply)
    assert session.ids == () and list(reply) == []
    reply = session.generate(IDS[:9], GREEDY)
    taken = [next(reply).id for _ in range(2)]
    session.cancel()
    with pytest.raises(CancelledError):
        next(reply)
    assert session.ids == (*IDS[:9], *taken)
    rest = ids_of(session.generate((), Sampling(temperature=0, max_tokens=3)))
    assert taken + rest == wanted


def test_one_that_waits_for_another_is_cancelled_before_its_first_layer(engine):
    first, second, waits = engine.session(), engine.session(), threading.Event()
    ended: list[BaseException] = []

    def later() -> None:
        try:
            second.logits(IDS, on_progress=lambda progress: waits.set())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=later)

    def told(progress: Progress) -> None:
        if progress.done_tokens and not waits.is_set():  # the engine is ours
            thread.start()
            assert waits.wait(10)
            second.cancel()

    first.logits(IDS, on_progress=told)
    thread.join(10)
    assert [type(error) for error in ended] == [CancelledError] and second.ids == ()


def test_the_engine_is_free_at_once_and_another_session_goes_on(engine):
    wanted = ids_of(engine.session().generate(IDS, GREEDY))
    session, other = engine.session(), engine.session()
    for event in range(1, LAYERS + 1):
        with pytest.raises(CancelledError):
            session.logits(IDS, on_progress=Ender(session, event))
    assert ids_of(other.generate(IDS, GREEDY)) == wanted
    assert ids_of(session.generate(IDS, GREEDY)) == wanted
