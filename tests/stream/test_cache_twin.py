"""The native cache policy against its twin in Python: the same calls give the same answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.apps import routing
from flashmoe.apps.routing_log import read
from flashmoe.stream.cache import LAST_TOKENS, Admission, Cache, Key
from tests.stream import reference_cache, reference_forecast
from tests.stream.reference_cache import Cache as Twin

TRACES = Path(__file__).parents[1] / "golden" / "traces"
LAYERS, EXPERTS = 3, 9
Answer = TypeVar("Answer")


def outcome(call: Callable[[], Answer]) -> Answer | tuple[type[Exception], str]:
    try:
        return call()
    except RuntimeError as error:
        return type(error), str(error)


class Pair:
    """Both, asked alike; every answer is compared, and so is what they hold."""

    def __init__(self, slots: int, layers: int, top_k: int, experts: int) -> None:
        self.native, self.twin = Cache(slots, layers, top_k), Twin(slots, layers, top_k)
        self.keys = [(layer, expert) for layer in range(layers) for expert in range(experts)]
        self.victims: list[Key] = []

    def same(self, call: Callable[[Any], Answer]) -> Answer | tuple[type[Exception], str]:
        found = outcome(lambda: call(self.native))
        assert found == outcome(lambda: call(self.twin))
        if isinstance(found, Admission) and found.evicted:
            self.victims.append(found.evicted)
        return found

    def compare(self) -> None:
        """Slots and counts; pins show in who can be dropped, unpinned and evicted."""
        layers = range(self.twin.layers)
        held = [key for key in self.keys if key in self.twin]
        assert held == [key for key in self.keys if key in self.native]
        slots = {key: self.twin.slot(key) for key in held}
        assert slots == {key: self.native.slot(key) for key in held}
        for layer in layers:
            experts = [key[1] for key in self.keys if key[0] == layer]
            assert self.native.slots_of(layer, experts) == [
                slots.get((layer, expert), -1) for expert in experts
            ]
        for key in self.keys:
            assert self.native.is_pinned(key) == self.twin.is_pinned(key)
        for name in ("slots", "layers", "free", "pinned"):
            assert getattr(self.native, name) == getattr(self.twin, name), name
        assert len(self.native) == len(self.twin)
        assert [self.native.resident(layer) for layer in layers] == [
            self.twin.resident(layer) for layer in layers
        ]

    def visit(self, layer: int, experts: list[int]) -> None:
        """A routing as the streamer asks for it, by the batch calls and by the single ones."""
        slots = self.native.lookup_all(layer, experts)
        found = [self.twin.lookup((layer, expert)) for expert in experts]
        assert slots == [-1 if slot is None else slot for slot in found]
        here = [expert for expert, slot in zip(experts, slots, strict=True) if slot >= 0]
        self.native.pin_all(layer, here)
        for expert in here:
            self.twin.pin((layer, expert))
        absent = [expert for expert in experts if expert not in here]
        came = self.admit_all(layer, absent, None)
        self.native.unpin_all(layer, here + came)
        for expert in here + came:
            self.twin.unpin((layer, expert))

    def sweep(self, layer: int, rows: list[list[int]], window: int) -> None:
        """A chunk's routing as the streamer asks for it, in file order."""
        ids = np.array(rows)
        order = np.unique(ids).tolist()
        slots = self.native.sweep(layer, order, ids)
        found = self.twin.sweep(
            layer, order, [sorted(row) for row in rows][-LAST_TOKENS:], len(rows)
        )
        assert slots == [-1 if slot is None else slot for slot in found]
        here = [expert for expert, slot in zip(order, slots, strict=True) if slot >= 0]
        self.native.pin_all(layer, here)
        for expert in here:
            self.twin.pin((layer, expert))
        absent = [expert for expert in order if expert not in here]
        came = self.admit_all(layer, absent[:window], None)
        absent, leaving = absent[len(came) :], sorted(here + came)
        room = window - len(came)
        gains = [int(expert in came) for expert in leaving]
        admitted = self.native.exchange(layer, leaving, gains, absent, room)
        count = 0
        for expert, gain in zip(leaving, gains, strict=True):
            self.twin.unpin((layer, expert))
            room += gain
            while room > 0 and count < len(absent):
                admission = self.twin.admit((layer, absent[count]))
                if admission is None:
                    break
                self.twin.pin((layer, absent[count]))
                self.victims += [admission.evicted] if admission.evicted else []
                slot, *evicted = admitted[count]
                assert admission == (slot, None if evicted == [-1, -1] else tuple(evicted))
                count, room = count + 1, room - 1
        assert count == len(admitted)
        self.native.unpin_all(layer, absent[:count])
        for expert in absent[:count]:
            self.twin.unpin((layer, expert))

    def admit_all(self, layer: int, experts: list[int], chances: list[float] | None) -> list[int]:
        """Who came."""
        admitted = self.native.admit_all(layer, experts, chances)
        for expert, (slot, *evicted) in zip(experts, admitted, strict=False):
            chance = chances[experts.index(expert)] if chances else None
            found = self.twin.admit((layer, expert), chance)
            assert found == (slot, None if evicted == [-1, -1] else tuple(evicted))
            self.twin.pin((layer, expert))
            self.victims += [found.evicted] if found and found.evicted else []
        if len(admitted) < len(experts):
            missed = len(admitted)
            assert self.twin.admit((layer, experts[missed]), chances and chances[missed]) is None
        return experts[: len(admitted)]


layers = st.integers(0, LAYERS - 1)
experts = st.integers(0, EXPERTS - 1)
routings = st.lists(experts, min_size=1, max_size=EXPERTS, unique=True)
chances = st.sampled_from([0.0, 1e-5, 0.01, 0.2, 0.5, 1.0])
steps = st.one_of(
    *[st.tuples(st.just("visit"), layers, routings)] * 4,
    *[
        st.tuples(
            st.just("sweep"),
            layers,
            st.lists(
                st.lists(experts, min_size=2, max_size=2, unique=True), min_size=2, max_size=9
            ),
            st.integers(1, 6),
        )
    ]
    * 2,
    st.tuples(st.just("guess"), layers, routings, chances),
    st.tuples(st.just("retire"), st.integers(0, 4), st.integers(0, 6)),
    st.tuples(st.just("seed"), st.integers(1, EXPERTS), st.integers(0, 99)),
    *(
        st.tuples(st.just(name), layers, experts)
        for name in ("lookup", "admit", "pin", "unpin", "drop", "place", "restore")
    ),
)


def take(pair: Pair, retired: list[int], step: tuple[Any, ...]) -> None:  # noqa: C901
    """One step; a key that does not suit is an error of both."""
    name, one, other = step[:3]
    if name == "visit":
        pair.visit(one, other)
    elif name == "sweep":
        pair.sweep(one, other, step[3])
    elif name == "guess":
        absent = [expert for expert in other if (one, expert) not in pair.twin]
        came = pair.admit_all(one, absent, [step[3]] * len(absent))
        for expert in came:
            pair.same(lambda cache, key=(one, expert): cache.unpin(key))
    elif name == "retire":
        taken = pair.same(lambda cache: cache.retire(one, other))
        assert isinstance(taken, list)
        retired += taken
    elif name == "restore":
        pair.same(lambda cache: cache.restore(retired))
        retired.clear()
    elif name == "seed":
        shares = np.random.default_rng(other).random((LAYERS, one)) ** 4
        pair.same(lambda cache: cache.seed(shares))
    elif name == "place":
        if pair.twin.free:
            slot = pair.same(lambda cache: cache.reserve())
            placed = pair.same(lambda cache: cache.place((one, other), slot))
            if placed is not None:
                pair.same(lambda cache: cache.unreserve(slot))
    else:
        pair.same(lambda cache: getattr(cache, name)((one, other)))


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 20), st.integers(1, 3), st.lists(steps, min_size=10, max_size=60))
def test_the_same_answers_whatever_is_asked(
    slots: int, top_k: int, sequence: list[tuple[Any, ...]]
) -> None:
    pair = Pair(slots, LAYERS, top_k, EXPERTS)
    retired: list[int] = []
    for step in sequence:
        take(pair, retired, step)
        pair.compare()


def decode(pair: Pair, tokens: int, count: int, top_k: int, seed: int) -> None:
    """Popular experts that drift, guesses a layer ahead, and a prompt chunk now and then."""
    dice = random.Random(seed)
    for token in range(tokens):
        for layer in range(pair.twin.layers):
            if token % 40 == 10:
                pair.sweep(layer, [dice.sample(range(count), top_k) for _ in range(60)], 8)
                continue
            weights = [
                1 / (1 + (expert * 7 + token // 25 + layer) % count) for expert in range(count)
            ]
            chosen = list(dict.fromkeys(dice.choices(range(count), weights, k=9 * top_k)))
            pair.visit(layer, chosen[:top_k])
            after = (layer + 1) % pair.twin.layers
            guessed = [e for e in chosen[:top_k] if (after, e) not in pair.twin][:2]
            came = pair.admit_all(after, guessed, [dice.random() for _ in guessed])
            for expert in came:
                pair.same(lambda cache, key=(after, expert): cache.unpin(key))


@pytest.mark.parametrize("top_k", [2, 4])
def test_decoding_with_guesses_and_chunks(top_k: int) -> None:
    pair = Pair(60, 6, top_k, 40)
    decode(pair, 150, 40, 4, seed=1)
    pair.compare()
    assert len(pair.victims) > 1500


def admissions(cache: Cache | Twin, requests: list[list[Key]]) -> list[tuple[Key, Admission]]:
    """Each miss and what it displaced."""
    found = []
    for keys in requests:
        for key in [key for key in keys if cache.lookup(key) is None]:
            admission = cache.admit(key)
            assert admission is not None
            found.append((key, admission))
    return found


@pytest.mark.parametrize("share", [0.05, 0.17, 0.5, 0.9])
@pytest.mark.parametrize("name", ["olmoe-1b-7b", "austen-moe"])
def test_real_logs_replay_to_the_same_misses_and_victims(name: str, share: float) -> None:
    log = read(TRACES / f"{name}.jsonl")
    header = log.header
    slots = int(share * header.layers * header.experts)
    requests = list(routing.requests(log))
    found = admissions(Cache(slots, header.layers, header.top_k), requests)
    assert found == admissions(Twin(slots, header.layers, header.top_k), requests)
    assert len(found) > slots + 100


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (reference_forecast, "_PRIOR", np.float32(50)),
        (reference_forecast, "MEMORY", 23),
        (reference_forecast, "RATE", 0.0101),
        (reference_forecast, "_DECAY", reference_forecast._DECAY * np.float32(0.9999)),
        (reference_cache, "_FLOOR", 0.5),
    ],
)
def test_a_twin_with_another_constant_is_found_out(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, value: object
) -> None:
    """So that the answers compared above do depend on all of them."""
    monkeypatch.setattr(module, name, value)
    with pytest.raises(AssertionError):
        decode(Pair(60, 6, 4, 40), 150, 40, 4, seed=1)
