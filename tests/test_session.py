"""Engine and session: the timeline, its snapshots, and what a failure leaves behind."""

import gc
import json
import threading
import weakref

import numpy as np
import pytest

from flashmoe.engine import Engine
from flashmoe.errors import (
    BudgetError,
    ClosedError,
    ContextError,
    InputError,
    ReadError,
    SessionError,
)
from flashmoe.options import Budget, Runtime, Sampling
from flashmoe.step import Totals
from flashmoe.text.forms import JsonSchema
from tests.synthetic import DENSE, HYBRID, write_store

IDS = [int(i) for i in np.random.default_rng(2).integers(0, 96, 70)]
GREEDY = Sampling(temperature=0, max_tokens=12)
CLOSE = 2e-3  # a chunk's products take activations of 16 bits (native/panels.h)


@pytest.fixture(scope="module", params=[HYBRID, DENSE], ids=["hybrid", "dense"])
def path(request, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("s") / "store", request.param)


@pytest.fixture
def engine(path):
    with Engine.open(path, budget=Budget(kv="f32")) as engine:
        yield engine


def test_logits_of_a_prompt_in_pieces_equal_the_whole(path):
    with Engine.open(path, dtype="float64", budget=Budget(kv="f32")) as engine:
        whole = engine.session().logits(IDS)
        pieces = engine.session()
        parts = [pieces.logits(IDS[a:b]) for a, b in ((0, 1), (1, 2), (2, 67), (67, 70))]
        assert whole.shape == (70, 96) and whole.dtype == np.float64
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-9)


def test_native_kernels_agree_with_the_reference(path):
    budget = Budget(kv="f32")
    with (
        Engine.open(path, dtype="float64", budget=budget) as exact,
        Engine.open(path, budget=budget) as native,
    ):
        assert (exact.kernels.name, native.kernels.name) == ("reference", "cpu")
        wanted = exact.session().logits(IDS[:20])
        np.testing.assert_allclose(native.session().logits(IDS[:20]), wanted, rtol=0, atol=CLOSE)


def test_generate_follows_the_logits_and_counts_its_cost(engine):
    session = engine.session()
    steps = list(session.generate(IDS[:9], GREEDY))
    assert [s.finish_reason for s in steps] == [None] * 11 + ["length"]
    assert steps[0].prompt_tokens == 9 and steps[1].prompt_tokens == 0
    assert session.ids == (*IDS[:9], *(s.id for s in steps))
    again = engine.session().logits(session.ids)
    assert [int(np.argmax(row)) for row in again[8:-1]] == [s.id for s in steps]
    asked = engine.shape.layers * engine.shape.experts.top_k
    assert all(s.hits + s.misses == asked for s in steps[1:])
    assert all(s.ms_total >= s.ms_read_wait >= 0 for s in steps)


def test_a_reply_goes_on_where_it_ended(engine):
    session = engine.session()
    first = [s.id for s in session.generate(IDS[:9], Sampling(temperature=0, max_tokens=5))]
    second = [s.id for s in session.generate((), Sampling(temperature=0, max_tokens=7))]
    whole = [s.id for s in engine.session().generate(IDS[:9], GREEDY)]
    assert first + second == whole


def test_closing_early_keeps_what_was_yielded(engine):
    session = engine.session()
    reply = session.generate(IDS[:9], GREEDY)
    taken = [next(reply).id for _ in range(3)]
    reply.close()
    assert session.ids == (*IDS[:9], *taken)
    rest = [s.id for s in session.generate((), Sampling(temperature=0, max_tokens=9))]
    assert taken + rest == [s.id for s in engine.session().generate(IDS[:9], GREEDY)]


def test_snapshots_are_bit_exact_in_memory_and_on_disk(engine, path, tmp_path):
    session = engine.session()
    list(session.generate(IDS[:30], Sampling(temperature=0, max_tokens=4)))
    kept = session.snapshot()
    session.save(tmp_path / "kept")
    wanted = session.logits(IDS[30:40])
    session.restore(kept)
    np.testing.assert_array_equal(session.logits(IDS[30:40]), wanted)
    with Engine.open(path, budget=Budget(kv="f32")) as other:
        loaded = other.session()
        loaded.load(tmp_path / "kept")
        assert loaded.ids == kept.ids
        np.testing.assert_array_equal(loaded.logits(IDS[30:40]), wanted)


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
@pytest.mark.parametrize("kv", ["f16", "bf16", "int8"])
def test_lossy_keys_and_values_are_saved_exactly_and_refused_elsewhere(
    engine, path, tmp_path, kv, kernels
):
    with Engine.open(path, budget=Budget(kv=kv), kernels=kernels) as other:
        assert other.plan.kv_bytes < engine.plan.kv_bytes
        session = other.session()
        list(session.generate(IDS[:30], Sampling(temperature=0, max_tokens=4)))
        kept = session.snapshot()
        session.save(tmp_path / "kept")
        wanted = session.logits(IDS[30:40])
        loaded = other.session()
        loaded.load(tmp_path / "kept")
        np.testing.assert_array_equal(loaded.logits(IDS[30:40]), wanted)
        whole = engine.session()
        whole.logits(session.ids[:-10])
        exact = whole.logits(IDS[30:40])
        assert 0 < np.abs(exact - wanted).max() < np.abs(exact).max() / 4
    with pytest.raises(SessionError, match=f"as {kv} and this engine as f32.*--kv {kv}"):
        engine.session().load(tmp_path / "kept")
    with pytest.raises(SessionError, match=f"--kv {kv}"):
        engine.session().restore(kept)


def test_a_step_tells_how_much_of_it_was_python(engine):
    steps = list(engine.session().generate(IDS[:9], GREEDY))
    assert all(0 < step.ms_python < step.ms_total for step in steps)
    totals = Totals.of(steps)
    assert 0 < totals.python_share < 1
    assert totals.decode_ms_python == sum(step.ms_python for step in steps[1:])


def test_a_saved_session_of_another_kind_or_damaged_is_refused(engine, path, tmp_path):
    session = engine.session()
    session.logits(IDS[:5])
    session.save(tmp_path / "kept")
    with Engine.open(path, dtype="float64") as other, pytest.raises(SessionError, match="dtype"):
        other.session().load(tmp_path / "kept")
    content = (tmp_path / "kept").read_bytes()
    used = len(content.rstrip(b" "))
    places = np.random.default_rng(0).integers(0, used, 60).tolist()
    for place in (0, 9, content.index(b"position") + 13, used - 1, *places):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            session.load(tmp_path / "damaged")
        except SessionError:
            continue
        assert content[place : place + 1] == b" "  # between header and data, where nothing lies
    assert session.ids == tuple(IDS[:5])
    for length in (0, 5, 4096, len(content) - 7):
        (tmp_path / "short").write_bytes(content[:length])
        with pytest.raises(SessionError, match="not a whole saved session"):
            session.load(tmp_path / "short")
    with pytest.raises(SessionError, match="cannot be opened"):
        session.load(tmp_path / "nothing")
    with pytest.raises(SessionError, match="cannot be written"):
        session.save(tmp_path / "no" / "such" / "place")


def test_bad_ids_are_refused_and_change_nothing(engine):
    session = engine.session()
    session.logits(IDS[:5])
    for bad in ([], [96], [-1], [3.5], ["a"], [1, None]):
        with pytest.raises(InputError):
            session.logits(bad)
        if bad:
            with pytest.raises(InputError):
                session.generate(bad)  # at once, not at the first step
    with pytest.raises(InputError, match="nothing to go on from"):
        engine.session().generate(())
    assert session.ids == tuple(IDS[:5])
    session.logits(np.array(IDS[5:7]))
    assert session.ids == tuple(IDS[:7])


def test_a_reply_can_begin_where_logits_ended(engine):
    session = engine.session()
    session.logits(IDS[:9])
    made = [step.id for step in session.generate((), GREEDY)]
    del session
    assert made == [step.id for step in engine.session().generate(IDS[:9], GREEDY)]


def test_using_the_session_ends_an_open_reply(engine):
    session = engine.session()
    kept = session.snapshot()
    reply = session.generate(IDS[:9], GREEDY)
    first = next(reply).id
    session.logits([5])
    assert session.ids == (*IDS[:9], first, 5)
    with pytest.raises(InputError, match="this reply has ended"):
        next(reply)
    reply = session.generate((), GREEDY)
    next(reply)
    session.restore(kept)
    with pytest.raises(InputError, match="this reply has ended"):
        next(reply)
    assert session.ids == ()


def test_the_same_tokens_pass_in_the_same_chunks_whatever_calls_brought_them(path):
    with Engine.open(path, runtime=Runtime(chunk_tokens=16)) as engine:
        whole = engine.session()
        wanted = whole.logits(IDS)[-1]
        split = engine.session()
        split.logits(IDS[:16])
        split.logits(IDS[16:48])
        np.testing.assert_array_equal(split.logits(IDS[48:])[-1], wanted)


def test_the_context_is_a_limit_and_a_full_one_ends_a_reply(path):
    with Engine.open(path, budget=Budget(context_tokens=16)) as engine:
        session = engine.session()
        with pytest.raises(ContextError, match="planned context of 16"):
            session.logits(IDS[:17])
        steps = list(session.generate(IDS[:10], Sampling(temperature=0)))
        assert len(steps) == 7 and steps[-1].finish_reason == "length"


def test_a_failed_read_undoes_its_chunk_and_the_session_goes_on(path, monkeypatch):
    budget, runtime = Budget(kv="f32"), Runtime(chunk_tokens=8)
    with Engine.open(path, budget=budget, runtime=runtime) as engine:
        session = engine.session()
        (step,) = session.generate(IDS[:5], Sampling(temperature=0, max_tokens=1))
        timeline = session.ids
        assert timeline == (*IDS[:5], step.id)
        wanted = engine.session().logits([*timeline, *IDS[6:12]])[6:]
        real, calls = engine.streamer.hold, []

        def failing(layer, ids):
            calls.append(layer)
            if len(calls) == 2:
                raise ReadError("expert 1 of layer 1 could not be read")
            return real(layer, ids)

        monkeypatch.setattr(engine.streamer, "hold", failing)
        with pytest.raises(ReadError):
            session.logits(IDS[6:12])
        assert session.ids == timeline  # the token that was yielded but not passed is kept
        monkeypatch.undo()
        np.testing.assert_allclose(session.logits(IDS[6:12]), wanted, rtol=0, atol=CLOSE)


def test_fewer_experts_a_token_is_a_choice_with_limits(path):
    with Engine.open(path) as own:
        if own.shape.experts.router == "all":
            with pytest.raises(InputError, match="no router"):
                Engine.open(path, experts_per_token=2)
            return
        with Engine.open(path, experts_per_token=2) as fewer:
            steps = list(fewer.session().generate(IDS[:9], GREEDY))
            assert steps[1].hits + steps[1].misses == 2 * fewer.shape.layers
            assert fewer.key != own.key
        with Engine.open(path, experts_per_token=8) as more:
            assert more.streamer.least_slots == 16
        for wanted in (0, 9):
            with pytest.raises(InputError, match="this model has 8 experts"):
                Engine.open(path, experts_per_token=wanted)


def test_costs_are_counted_to_the_session_that_caused_them(path):
    with Engine.open(path) as engine:
        asked = engine.shape.layers * engine.shape.experts.top_k
        seen = []

        def talk():
            steps = list(engine.session().generate(IDS[:2], GREEDY))
            seen.extend(step.hits + step.misses for step in steps[1:])

        threads = [threading.Thread(target=talk) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [asked] * len(seen) and len(seen) == 33


def test_sessions_beyond_the_memory_are_refused(path):
    with Engine.open(path) as generous:
        kept = [generous.session() for _ in range(5)]
        assert len(kept) == 5
        floor = generous.plan.floor_bytes
    with Engine.open(path, budget=Budget(ram_bytes=floor + (64 << 20), slots=4)) as engine:
        held = []
        with pytest.raises(BudgetError, match="room for"):
            for _ in range(10_000):
                held.append(engine.session())
        held.pop()
        held.append(engine.session())


def test_a_budget_below_the_floor_is_refused_before_loading(path):
    with pytest.raises(BudgetError, match="below the floor"):
        Engine.open(path, budget=Budget(ram_bytes=1 << 20))


def test_a_closed_engine_says_so_and_has_let_its_weights_go(path):
    engine = Engine.open(path)
    session = engine.session()
    reply = session.generate(IDS[:9], GREEDY)
    next(reply)
    weights = weakref.ref(engine.decoder)
    engine.close()
    engine.close()
    gc.collect()
    assert weights() is None
    for use in (
        engine.session,
        engine.empty_cache,
        lambda: next(reply),
        lambda: session.logits([1]),
    ):
        with pytest.raises(ClosedError, match="closed: open the store again"):
            use()


def test_hidden_states_give_the_logits_chunk_by_chunk(path):
    runtime = Runtime(chunk_tokens=64)
    with Engine.open(path, budget=Budget(kv="f32"), runtime=runtime) as engine:
        whole = engine.session().logits(IDS)
        session = engine.session()
        chunks = list(session.hidden(IDS))
        assert [len(hidden) for hidden in chunks] == [64, 6]
        found = np.concatenate([engine.head(hidden) for hidden in chunks])
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5)
        assert session.ids == tuple(IDS)


def test_hidden_states_are_those_of_the_ids_alone_and_not_of_a_token_before(engine):
    session = engine.session()
    token = next(session.generate(IDS[:5], GREEDY)).id  # drawn, and still to pass
    (hidden,) = session.hidden(IDS[5:8])
    assert len(hidden) == 3 and session.ids == (*IDS[:5], token, *IDS[5:8])
    with pytest.raises(InputError, match="no ids"):
        session.hidden([])


def test_hidden_states_that_are_left_early_keep_what_passed(path):
    with Engine.open(path, runtime=Runtime(chunk_tokens=16)) as engine:
        session = engine.session()
        chunks = session.hidden(IDS)
        next(chunks)
        chunks.close()
        assert session.ids == tuple(IDS[:16])
        chunks = session.hidden(IDS[16:])
        next(chunks)
        session.rewind(8)
        with pytest.raises(InputError, match="used for something else"):
            next(chunks)
        assert session.ids == tuple(IDS[:8]), "what another call has made of it stays"


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def test_a_guided_reply_fits_its_schema_and_ends_with_it():
    with Engine.open("demo") as engine:
        prompt = engine.tokenizer.encode("Emma was")
        for seed in range(3):
            guide = engine.grammars.guide(form=JsonSchema(SCHEMA))
            sampling = engine.sampling(seed=seed, temperature=1, max_tokens=200)
            steps = list(engine.session().generate(prompt, sampling, guide=guide))
            answer = json.loads("".join(step.text for step in steps))
            assert answer.keys() == {"name", "age"} and isinstance(answer["age"], int)
            assert steps[-1].finish_reason == "stop" and steps[-1].id in engine.stop_ids


def test_a_guide_that_asks_nothing_changes_nothing():
    with Engine.open("demo") as engine:
        prompt = engine.tokenizer.encode("Emma was")
        sampling = engine.sampling(temperature=0, max_tokens=12)
        free = [step.id for step in engine.session().generate(prompt, sampling)]
        tools = [{"type": "function", "function": {"name": "clock"}}]
        guide = engine.grammars.guide(tools=tools)
        assert [
            step.id for step in engine.session().generate(prompt, sampling, guide=guide)
        ] == free
        with pytest.raises(InputError, match="has served a reply"):
            engine.session().generate(prompt, sampling, guide=guide)


def test_what_grammars_weigh_is_in_the_plan_where_it_was_asked_for():
    with Engine.open("demo", grammars=True) as engine:
        before = engine.ledger.slots(1)
        assert engine.grammars.guide(form=JsonSchema(SCHEMA)) is not None
        assert engine.ledger.slots(1) == before


def test_without_a_tokenizer_nothing_can_be_bound(engine):
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        engine.grammars  # noqa: B018


def test_a_guide_that_is_refused_leaves_the_timeline_as_it_was():
    with Engine.open("demo", grammars=True) as engine:
        session, prompt = engine.session(), engine.tokenizer.encode("Emma")
        sampling = engine.sampling(max_tokens=1, temperature=0)
        guide = engine.grammars.guide(form=JsonSchema(SCHEMA))
        list(session.generate(prompt, sampling, guide=guide))
        before = session.ids
        with pytest.raises(InputError):
            session.generate(prompt, sampling, guide=guide)
        assert session.ids == before
