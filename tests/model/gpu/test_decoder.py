"""The demo on a GPU, real or imitated, against the processor's own kernels."""

import re
from dataclasses import replace

import numpy as np
import pytest

from flashmoe import Budget, Engine, PrefixCache, Runtime, Sampling
from flashmoe.errors import BudgetError, DeviceError, InputError, ReadError
from flashmoe.kernels import on_device
from flashmoe.model.gpu.decoder import GpuDecoder
from flashmoe.model.gpu.opening import planned
from flashmoe.planning import outlay_of
from flashmoe.store.reader import Store
from flashmoe.stream.tiers.vram import Vram
from flashmoe.stream.usage import Usage
from tests.kernels.cuda.conftest import device, the_gpu  # noqa: F401
from tests.kernels.cuda.emulated import EmulatedDevice
from tests.tolerances import FLOAT32_LOGITS, PROMPT_LOGITS

PLAIN = Runtime(profile=False, threads=1)
PROMPT = "Emma was sitting one"


def opened(kernels, **more):
    budget = Budget(context_tokens=64, **{"sessions": 2, **more})
    return Engine.open("demo", kernels=kernels, budget=budget, runtime=PLAIN)


def test_logits_are_the_processors(device):  # noqa: F811
    with opened("cpu") as engine:
        ids = engine.tokenizer.encode(PROMPT)
        # One by one: a prompt's products round their activations, which these do not.
        wanted = session_logits(engine.session(), ids)
    with opened(on_device(device)) as engine:
        got = session_logits(engine.session(), ids)
    assert np.abs(got - wanted).max() < FLOAT32_LOGITS


@pytest.mark.parametrize("given", (None, 8))
def test_a_prompt_in_one_piece(device, given):  # noqa: F811
    """Its products round activations to 16 bits, as the processor's do."""
    with opened("cpu") as engine:
        ids = engine.tokenizer.encode(PROMPT * 2)
        wanted = engine.session().logits(ids)
    with opened(on_device(device), vram_bytes=given and vram_of(given)) as engine:
        session = engine.session()
        got = session.logits(ids)
        after = session.logits([3])
        assert np.abs(got - wanted).max() < FLOAT32_LOGITS
        other = engine.session()
        session_logits(other, ids)
        assert np.abs(other.logits([3]) - after).max() < PROMPT_LOGITS


@pytest.mark.parametrize("slots, ram", ((8, None), (9, 6), (100, 40), (100, None)))
def test_slots_do_not_show(device, slots, ram):  # noqa: F811
    """Few slots or all, in VRAM and in RAM: the same bits."""
    replies = []
    for given in (slots, None):
        few = {"vram_bytes": vram_of(given), "slots": ram} if given else {}
        with opened(on_device(device), **few) as engine:
            assert engine.decoder.slots == (given or 256)
            ids = engine.tokenizer.encode(PROMPT)
            session, before = engine.session(), engine.counters
            logits = session_logits(session, ids)
            reply = [step.id for step in session.generate(sampling=Sampling(max_tokens=6, seed=1))]
            counters = engine.counters.since(before)
            assert counters.vram_hits + counters.vram_misses == 8 * 4 * (len(ids) + 5)
            replies.append((logits, reply))
    np.testing.assert_array_equal(replies[0][0], replies[1][0])
    assert replies[0][1] == replies[1][1]


@pytest.mark.parametrize("ram", (None, 40))
def test_slots_do_not_show_in_a_prompt(device, ram):  # noqa: F811
    """All in RAM, where nobody waits for copies but the device, or some: the same bits."""
    found = []
    for few in ({"vram_bytes": vram_of(12), "slots": ram}, {}):
        with opened(on_device(device), **few) as engine:
            ids = engine.tokenizer.encode(PROMPT)
            found.append([engine.session().logits(ids[start:]) for start in range(2)])
            assert not few or engine.counters.vram_misses > engine.decoder.slots
    for some, all_of_them in zip(*found, strict=True):
        np.testing.assert_array_equal(some, all_of_them)


@pytest.mark.parametrize(
    "slots, ram, kernel, hints",
    ((100, None, "anticipate", True), (100, None, None, False), (256, None, None, True)),
)
def test_what_is_in_ram_is_brought_before_it_is_chosen(slots, ram, kernel, hints):
    """Where some is in VRAM and all in RAM, unless hints are off."""
    made = EmulatedDevice()
    budget = Budget(context_tokens=64, sessions=2, vram_bytes=vram_of(slots), slots=ram)
    runtime = Runtime(profile=False, threads=1, hints=hints)
    with Engine.open("demo", kernels=on_device(made), budget=budget, runtime=runtime) as engine:
        session_logits(engine.session(), [5, 6])
    assert ("anticipate" in made.launches) == (kernel is not None)


def test_what_a_layer_is_likely_to_choose_is_foretold():
    """Where some is on SSD alone; of a model that was trained, most of it is chosen then."""
    right = []
    with opened(on_device(EmulatedDevice()), vram_bytes=vram_of(20), slots=40) as engine:
        session, tokens = engine.session(), engine.decoder._tokens
        for number in engine.tokenizer.encode(PROMPT):
            session.logits([number])
            for layer in range(1, 8):
                chosen = tokens._mailbox.asked(layer, 4).ids
                right += np.isin(chosen, tokens._ranked(layer)[:4]).tolist()
    assert np.mean(right) > 0.5


def vram_of(slots):
    """A limit that leaves so many slots of the demo."""
    store = Store.open("demo")
    table, budget = on_device(EmulatedDevice()), Budget(context_tokens=64, sessions=2)
    sizes = outlay_of(store, budget, table, store.shape.experts.top_k)
    limit = 1 << 20
    while True:
        try:
            plan = planned(store, store.shape, sizes, table.device, limit)
        except BudgetError:
            limit += 1 << 20
            continue
        if plan.slots >= slots:
            return plan.planned_bytes - (plan.slots - slots) * plan.slot_bytes
        limit += plan.slot_bytes


def test_a_timeline_is_kept_and_resumed(device):  # noqa: F811
    with opened(on_device(device)) as engine:
        ids = engine.tokenizer.encode(PROMPT)
        session = engine.session()
        session_logits(session, ids)
        kept = session.snapshot()
        wanted = session.logits([7])
        other = engine.session()
        other.restore(kept)
        np.testing.assert_array_equal(other.logits([7]), wanted)
        session.restore(kept)
        np.testing.assert_array_equal(session.logits([7]), wanted)


def test_prefixes_are_kept_and_resumed(device):  # noqa: F811
    cache = PrefixCache(memory_bytes=8 << 20)
    with Engine.open(
        "demo",
        kernels=on_device(device),
        budget=Budget(context_tokens=128, sessions=2),
        runtime=PLAIN,
        prefix_cache=cache,
    ) as engine:
        ids = [number % 4096 for number in range(5, 600, 9)]
        sampling = Sampling(temperature=0, max_tokens=2)
        first = [step.id for step in engine.session().generate(ids, sampling)]
        steps = list(engine.session().generate(ids, sampling))
        assert [step.id for step in steps] == first
        assert steps[0].cached_tokens == len(ids)


def test_a_read_error_leaves_the_timeline_as_it_was(device, monkeypatch):  # noqa: F811
    with opened(on_device(device), vram_bytes=vram_of(8)) as engine:
        ids = engine.tokenizer.encode(PROMPT)
        session = engine.session()
        session_logits(session, ids)
        kept = session.snapshot()
        wanted = session.logits([9])
        session.restore(kept)
        hold = engine.streamer.hold

        def failing(layer, *given):
            if layer == 3:
                raise ReadError("made up")
            return hold(layer, *given)

        engine.empty_cache()
        with monkeypatch.context() as patched:
            patched.setattr(engine.streamer, "hold", failing)
            with pytest.raises(ReadError, match="made up"):
                session.logits([9])
        np.testing.assert_array_equal(session.logits([9]), wanted)


def test_too_little_vram_is_refused_with_the_number():
    with pytest.raises(BudgetError, match=r"the GPU must hold at least .* MiB"):
        opened(on_device(EmulatedDevice()), vram_bytes=1 << 20)


def session_logits(session, ids):
    return np.concatenate([session.logits([token]) for token in ids])


def test_the_launches_of_a_token():
    """Each costs microseconds: norms are in their products, and a mixer is one or two."""
    counted = EmulatedDevice()
    with opened(on_device(counted)) as engine:
        counted.launches.clear()
        assert len(list(engine.session().generate([5], Sampling(max_tokens=1)))) == 1
    mixers = Store.open("demo").shape.mixers
    layer = [
        "project_normed",
        "project",
        "project_normed",
        "route",
        "experts_up",
        "experts_down",
    ]
    wanted = ["lookup"]
    for mixer in mixers:
        between = {"attention": "merge", "recurrent": "gated_delta"}[mixer]
        wanted += [layer[0], between, *layer[1:]]
    products = [re.sub(r"^(project\w*)_\d$", r"\1", name) for name in counted.launches]
    launched = [name for name in products if not name.startswith("attend_")]
    assert launched == [*wanted, "project_normed"]
    assert len(counted.launches) - len(launched) == mixers.count("attention")


@pytest.mark.parametrize("way", ("download", "write"))
def test_a_copy_between_the_sides_that_fails_is_made_again(device, monkeypatch, way):  # noqa: F811
    with opened(on_device(device)) as engine:
        session = engine.session()
        session_logits(session, [5, 6])
        kept = session.snapshot()
        wanted = session.logits([7])
        if way == "write":
            session.restore(kept)
        with monkeypatch.context() as patched:
            patched.setattr(device, way, failing)
            with pytest.raises(DeviceError, match="made up"):
                session.logits([7]) if way == "write" else session.snapshot()
        if way == "write":
            np.testing.assert_array_equal(session.logits([7]), wanted)
        else:
            other = engine.session()
            other.restore(session.snapshot())
            np.testing.assert_array_equal(other.logits([8]), session.logits([8]))


def failing(*_):
    raise DeviceError("made up")


def test_an_opening_that_fails_lets_go_of_the_host(monkeypatch):
    made, held = EmulatedDevice(), set()
    monkeypatch.setattr(made, "pin", lambda array: held.add(array.ctypes.data))
    monkeypatch.setattr(made, "unpin", lambda array: held.remove(array.ctypes.data))
    monkeypatch.setattr(GpuDecoder, "fill", failing)
    with pytest.raises(DeviceError, match="made up"):
        opened(on_device(made))
    assert not held
    monkeypatch.undo()
    monkeypatch.setattr(made, "synchronize", failing)  # as after an error that stays
    opened(on_device(made)).close()


def test_what_was_chosen_in_earlier_runs_is_expected_in_vram_too(monkeypatch):
    counts = np.zeros((8, 32), np.int64)
    counts[:, 5] = 100
    profile = Usage(8, 32)
    monkeypatch.setattr(profile, "shares", lambda: counts / 100)
    monkeypatch.setattr("flashmoe.engine.usage.load", lambda *_: profile)
    monkeypatch.setattr("flashmoe.engine.usage.save", lambda *_: None)
    told = []
    monkeypatch.setattr(Vram, "warm", lambda _, shares: told.append(shares))
    budget = Budget(context_tokens=64, vram_bytes=vram_of(20))
    with Engine.open(
        "demo", kernels=on_device(EmulatedDevice()), budget=budget, runtime=Runtime(threads=1)
    ):
        np.testing.assert_array_equal(told, [counts / 100])


def test_where_the_device_cannot_read_ram_all_comes_again_once_it_is_forgotten(monkeypatch):
    made = EmulatedDevice()
    monkeypatch.setattr(made, "pin", failing)
    with opened(on_device(made)) as engine:
        ids = engine.tokenizer.encode(PROMPT)
        wanted = session_logits(engine.session(), ids[:4])
        engine.empty_cache()
        np.testing.assert_array_equal(session_logits(engine.session(), ids[:4]), wanted)


def test_no_more_timelines_than_are_planned_in_vram():
    with opened(on_device(EmulatedDevice()), sessions=1) as engine:
        first = engine.session()
        with pytest.raises(BudgetError, match="room for 1 sessions"):
            engine.session()
        del first


def test_what_the_kernels_do_not_take_is_refused_before_anything_is_loaded():
    with pytest.raises(InputError, match="32 of 32 experts; at most 31 of 1024"):
        Engine.open(
            "demo", kernels=on_device(EmulatedDevice()), runtime=PLAIN, experts_per_token=32
        )
    store = Store.open("demo")
    table, budget = on_device(EmulatedDevice()), Budget(context_tokens=64)
    sizes = outlay_of(store, budget, table, 4)
    wide = replace(store.shape, hidden=16384)
    with pytest.raises(InputError, match="a hidden size of 16384; at most 8192"):
        planned(store, wide, sizes, table.device, None)
