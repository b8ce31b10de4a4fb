"""Sessions with a prefix cache: what resumes is what would have been, to the last bit."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flashmoe.engine import Engine
from flashmoe.errors import InputError, ReadError
from flashmoe.options import Budget, PrefixCache, Runtime, Sampling
from flashmoe.prefix import pieces
from flashmoe.step import Totals
from tests.synthetic import DENSE, HYBRID, write_store

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(2)
IDS, OTHER, THIRD = ([int(i) for i in RNG.integers(0, 96, 500)] for _ in range(3))
CHUNKS = Runtime(chunk_tokens=192)  # no divisor of what is kept: cuts come in between


def greedy(tokens):
    return Sampling(temperature=0, max_tokens=tokens, logprobs=5)


@pytest.fixture(scope="module", params=[HYBRID, DENSE], ids=["hybrid", "dense"])
def path(request, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("s") / "store", request.param)


@pytest.fixture
def engine(path, tmp_path):
    with open_engine(path, tmp_path / "cache") as engine:
        yield engine


@pytest.fixture
def plain(path):
    """The same without a cache."""
    with Engine.open(path, runtime=CHUNKS) as engine:
        yield engine


def open_engine(path, directory, **options):
    return Engine.open(path, runtime=CHUNKS, prefix_cache=PrefixCache(directory), **options)


def reply(session, ids, tokens=4, **more):
    return list(session.generate(ids, greedy(tokens), **more))


def alike(one, other):
    """Whether two replies and the timelines after them are the same to the last bit."""
    (steps, session), (others, another) = one, other
    assert [(s.id, s.logprob, s.top_logprobs) for s in steps] == [
        (s.id, s.logprob, s.top_logprobs) for s in others
    ]
    mine, theirs = session.snapshot(), another.snapshot()
    assert (mine.ids, mine.position) == (theirs.ids, theirs.position)
    for name, array in mine.arrays.items():
        np.testing.assert_array_equal(array.view(np.uint8), theirs.arrays[name].view(np.uint8))


def test_the_same_prompt_again_passes_nothing(engine, plain):
    first, again, cold = engine.session(), engine.session(), plain.session()
    reply(first, IDS[:300])
    steps = reply(again, IDS[:300])
    assert (steps[0].cached_tokens, steps[0].prompt_tokens) == (300, 300)
    assert steps[0].hits == steps[0].misses == 0 and steps[1].hits + steps[1].misses
    alike((steps, again), (reply(cold, IDS[:300]), cold))


TALK = """
import sys
from pathlib import Path
from tests.prefix.test_trail import IDS, open_engine, reply
with open_engine(Path(sys.argv[1]), Path(sys.argv[2])) as engine:
    reply(engine.session(), IDS[:300], 90)
"""


def test_another_process_goes_on_as_the_same_session_would(path, plain, tmp_path):
    """Behind the reply, at any position, and at the end of the prompt."""
    arguments = [sys.executable, "-c", TALK, str(path), str(tmp_path)]
    subprocess.run(arguments, check=True, timeout=120, cwd=ROOT)
    live = plain.session()
    reply(live, IDS[:300], 90)
    for more in ([], OTHER[:1], THIRD[:70]):
        kept = live.snapshot()
        with open_engine(path, tmp_path) as engine:
            session = engine.session()
            steps = reply(session, [*live.ids, *more])
            assert steps[0].cached_tokens == 389
            wanted = reply(live, more)
            alike((steps, session), (wanted, live))
        live.restore(kept)
    live.rewind(0)
    reply(live, IDS[:300], 1)
    live.rewind(300)
    with open_engine(path, tmp_path) as engine:
        session = engine.session()
        steps = reply(session, IDS[:300] + OTHER[:70])
        assert steps[0].cached_tokens == 300
        alike((steps, session), (reply(live, OTHER[:70]), live))


def test_a_marked_beginning_resumes_as_if_it_had_passed(engine, plain):
    reply(engine.session(), IDS[:300], marks=[40, 140])
    session, cold = engine.session(), plain.session()
    steps = reply(session, IDS[:140] + OTHER[:100])
    assert steps[0].cached_tokens == 128
    alike((steps, session), (reply(cold, IDS[:140] + OTHER[:100]), cold))


def test_the_third_that_takes_a_branch_reuses_all_of_it(engine, plain):
    ends = OTHER[:100], THIRD[:100], THIRD[100:290]
    cached = []
    reply(engine.session(), IDS[:400])
    for end in ends:
        session, cold = engine.session(), plain.session()
        steps = reply(session, IDS[:200] + end)
        cached.append(steps[0].cached_tokens)
        alike((steps, session), (reply(cold, IDS[:200] + end), cold))
    assert cached[0] < 192 and cached[1:] == [192, 192]


@pytest.mark.parametrize("slots", [4, None])
def test_the_answer_is_the_same_whatever_was_kept(path, plain, tmp_path, slots):
    prompts = [
        IDS[:450],
        IDS[:450],
        IDS[:256] + OTHER[:65],
        IDS[:256] + THIRD[:1],
        IDS[:450] + OTHER[:1],
        IDS[:449],
        IDS[:193],
        OTHER[:64],
        OTHER[:65],
    ]
    with open_engine(path, tmp_path, budget=Budget(slots=slots)) as engine:
        found = []
        for prompt in prompts:
            session, cold = engine.session(), plain.session()
            cut = len(prompt) // 3
            steps = reply(session, prompt, marks=[cut, 2 * cut])
            found.append(steps[0].cached_tokens)
            if 450 == found[-1] < len(prompt):  # goes on behind the end of an earlier prompt
                reply(cold, IDS[:450], 1)
                cold.rewind(450)
                alike((steps, session), (reply(cold, prompt[450:]), cold))
            else:
                alike((steps, session), (reply(cold, prompt), cold))
        assert found[0] == 0 and found[1] == 450 and all(found[2:7])


def test_no_pass_of_a_prompt_is_a_single_token(path, tmp_path, monkeypatch):
    runtime = Runtime(chunk_tokens=128)
    with Engine.open(path, runtime=runtime, prefix_cache=PrefixCache(tmp_path)) as engine:
        seen, real = [], engine.run

        def run(ids, state, between):
            start, passed = state.position, real(ids, state, between)
            seen.append((start, len(passed[0])))
            return passed

        monkeypatch.setattr(engine, "run", run)
        reply(engine.session(), IDS[:250], 1, marks=range(250))
        assert seen == [(0, 64), (64, 64), (128, 64), (192, 58)]
        for prompt in (IDS[:193], IDS[:192] + OTHER[:1], IDS[:65], IDS[:64] + OTHER[:1]):
            reply(engine.session(), prompt, 1, marks=range(len(prompt)))
        assert seen[4:] == [(128, 65), (128, 65), (0, 65), (0, 65)]


def test_costs_are_told(path, tmp_path):
    with open_engine(path, tmp_path) as engine:
        session = engine.session()
        steps = reply(session, IDS[:300], 90)
        assert [step.cached_tokens for step in steps] == [0] * 90
        given = [number for number, step in enumerate(steps) if step.bytes_written]
        assert given == [1, 89]  # the prompt's end behind its token, and the reply's
        totals = Totals.of(steps)
        engine.prefixes.flush()
        assert totals.bytes_written == engine.prefixes.written_bytes > 0
        size = sum(file.stat().st_size for file in tmp_path.rglob("*.prefix"))
        assert size == engine.prefixes.written_bytes
        steps = reply(engine.session(), IDS[:300] + OTHER[:20], 2)
        totals = Totals.of(steps)
        assert (totals.cached_tokens, totals.prompt_tokens) == (300, 320)
        assert totals.prompt_tokens_per_second == 1e3 * 20 / totals.ms_first


def test_short_prompts_and_single_steps_write_nothing(engine):
    session = engine.session()
    reply(session, IDS[:30], 20)
    for _ in range(10):
        reply(session, [], 1)
    engine.prefixes.flush()
    assert engine.prefixes.written_bytes == 0


def test_a_reply_that_is_closed_early_is_kept(engine):
    session = engine.session()
    steps = session.generate(IDS[:100], greedy(400))
    for _ in range(80):
        next(steps)
    steps.close()
    (step,) = reply(engine.session(), session.ids, 1)
    assert step.cached_tokens == 179


def test_what_had_passed_before_a_failure_is_kept(engine, monkeypatch):
    real, calls = engine.streamer.hold, []

    def failing(layer, ids):
        calls.append(layer)
        if len(calls) == engine.shape.layers + 2:
            raise ReadError("expert 1 of layer 1 could not be read")
        return real(layer, ids)

    monkeypatch.setattr(engine.streamer, "hold", failing)
    session = engine.session()
    with pytest.raises(ReadError):
        reply(session, IDS[:400])
    assert session.ids == tuple(IDS[:192])
    assert reply(engine.session(), IDS[:400], 1)[0].cached_tokens == 192


def test_a_rewind_passes_no_more_than_it_must(engine, plain):
    session, cold = engine.session(), plain.session()
    for one in (session, cold):
        reply(one, IDS[:320], marks=[200])
        one.rewind(210)
        assert one.ids == tuple(IDS[:210])
    steps, wanted = reply(session, OTHER[:60]), reply(cold, OTHER[:60])
    assert (steps[0].cached_tokens, wanted[0].cached_tokens) == (192, 0)
    alike((steps, session), (wanted, cold))
    for one in (session, cold):
        one.rewind(210)
    logits = session.logits(OTHER[:60])
    np.testing.assert_array_equal(logits, cold.logits(OTHER[:60]))
    assert logits.shape == (60, 96)
    for tokens in (-1, 271):
        with pytest.raises(InputError, match="from 0 to 270"):
            session.rewind(tokens)
    session.rewind(0)
    assert session.ids == ()
    assert reply(session, IDS[:320], 1)[0].cached_tokens == 320


def test_a_restored_timeline_keeps_its_own_blocks(engine, plain):
    session, other, cold = engine.session(), engine.session(), plain.session()
    reply(session, IDS[:400], 1)
    reply(other, OTHER[:300], 1)
    session.restore(other.snapshot())
    reply(session, THIRD[:70], 1)
    again = engine.session()
    steps = reply(again, session.ids[:-1] + tuple(IDS[:9]))
    assert steps[0].cached_tokens == 371
    reply(cold, OTHER[:300], 1)
    reply(cold, THIRD[:70], 1)
    cold.rewind(371)
    alike((steps, again), (reply(cold, IDS[:9]), cold))


def test_logits_are_those_of_every_token_and_serve_later_timelines(engine, plain):
    session, cold = engine.session(), plain.session()
    wanted = cold.logits(IDS[:200])
    np.testing.assert_array_equal(session.logits(IDS[:200]), wanted)
    np.testing.assert_array_equal(engine.session().logits(IDS[:200]), wanted)
    assert reply(engine.session(), IDS[:200], 1)[0].cached_tokens == 200


def test_a_full_disk_ends_the_keeping_and_not_the_reply(engine, plain, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.prefixes._directory, "write", full)
    session, cold = engine.session(), plain.session()
    with caplog.at_level(logging.WARNING):
        steps = reply(session, IDS[:300], 90)
        engine.prefixes.flush()
    assert caplog.text.count("No space left on device; replies go on without") == 1
    alike((steps, session), (reply(cold, IDS[:300], 90), cold))
    assert reply(engine.session(), IDS[:300], 1)[0].cached_tokens == 300  # from memory


def test_sessions_in_threads_share_it(engine):
    import threading

    found = []

    def talk():
        for _ in range(3):
            found.append([step.id for step in reply(engine.session(), IDS[:300], 3)])

    threads = [threading.Thread(target=talk) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9 and all(one == found[0] for one in found)


def test_the_memory_is_planned_and_a_closed_engine_has_written_all(path, plain, tmp_path):
    with open_engine(path, tmp_path / "cache") as engine:
        assert plain.plan.prefix_bytes == 0 < engine.plan.prefix_bytes
        assert engine.plan.planned_bytes - plain.plan.planned_bytes >= engine.plan.prefix_bytes
        session = engine.session()
        reply(session, IDS[:300], 2)
    assert list((tmp_path / "cache").rglob("state-300-*"))
    engine.close()
    with pytest.raises(InputError, match="memory_bytes"):
        Engine.open(path, prefix_cache=PrefixCache(memory_bytes=1000))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be kept"):
        open_engine(path, tmp_path / "file")


@pytest.mark.parametrize("mark", [-1, 100, 1.5, "a", None])
def test_a_mark_is_a_place_in_the_prompt(engine, mark):
    with pytest.raises(InputError, match="a mark is"):
        engine.session().generate(IDS[:70], marks=[mark])
    session = engine.session()
    reply(session, IDS[:70], 1)
    with pytest.raises(InputError, match="go back to"):
        session.rewind(mark)


def test_an_interrupted_restore_leaves_an_empty_timeline(engine, monkeypatch):
    reply(engine.session(), IDS[:300], 1)
    wanted = engine.session().logits(IDS[:300])

    def interrupted(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pieces, "place_block", interrupted)
        session = engine.session()
        with pytest.raises(KeyboardInterrupt):
            reply(session, IDS[:300], 1)
    assert session.ids == ()
    assert np.array_equal(session.logits(IDS[:300]), wanted)


def test_other_chunks_than_multiples_of_64_keep_to_themselves(path, tmp_path):
    options = PrefixCache(tmp_path)
    for size, cached in ((100, 0), (64, 0), (192, 250), (100, 250), (None, 250)):
        runtime = Runtime(chunk_tokens=size)
        with Engine.open(path, runtime=runtime, prefix_cache=options) as engine:
            assert reply(engine.session(), IDS[:250], 1)[0].cached_tokens == cached, size
