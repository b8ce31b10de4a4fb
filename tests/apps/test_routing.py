"""The figures of a routing log: known ones of two real logs, and brute-force definitions."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.apps import routing
from flashmoe.apps.routing_log import Header, RoutingLog, read

TRACES = Path(__file__).parents[1] / "golden" / "traces"


def log_of(tokens: list[list[list[int]]], experts: int, passes: list[int]) -> RoutingLog:
    ids = np.array(tokens, np.int32)
    return RoutingLog(Header(ids.shape[1], experts, ids.shape[2]), ids, np.array(passes), 0)


@st.composite
def logs(draw: st.DrawFn) -> RoutingLog:
    layers, experts = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    top_k = draw(st.integers(1, experts))
    chosen = st.lists(st.integers(0, experts - 1), min_size=top_k, max_size=top_k, unique=True)
    token = st.lists(chosen.map(sorted), min_size=layers, max_size=layers)
    tokens = draw(st.lists(token, min_size=1, max_size=12))
    jumps = draw(st.lists(st.integers(0, 2), min_size=len(tokens), max_size=len(tokens)))
    return log_of(tokens, experts, np.cumsum(jumps).tolist())


@pytest.mark.parametrize(
    "name, overlap, rates",
    [
        ("olmoe-1b-7b", 0.435, (0.40, 0.54, 0.64, 0.83)),
        ("austen-moe", 0.291, (0.29, 0.43, 0.55, 0.80)),
    ],
)
def test_figures_of_real_logs(name, overlap, rates):
    log = read(TRACES / f"{name}.jsonl")
    assert routing.overlap(log) == pytest.approx(overlap, abs=5e-4)
    total = log.header.layers * log.header.experts
    for share, wanted in zip((0.10, 0.17, 0.25, 0.50), rates, strict=True):
        found = routing.replay(log, int(total * share)).hit_rate
        assert found == pytest.approx(wanted, abs=0.01), share


def test_the_busiest_quarter_of_austen_moe_takes_half():
    counts = routing.frequencies(read(TRACES / "austen-moe.jsonl"))
    assert counts.sum() == 657 * 8 * 4
    assert routing.busiest_quarter(counts) == pytest.approx(0.53, abs=5e-3)


@given(logs())
def test_frequencies_count_every_activation(log):
    counts = routing.frequencies(log)
    for layer in range(log.header.layers):
        for expert in range(log.header.experts):
            assert counts[layer, expert] == (log.ids[:, layer] == expert).sum()


@given(logs(), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_coverage_is_reached_and_one_expert_less_does_not_reach_it(log, share):
    counts = routing.frequencies(log)
    sizes = [10 * (layer + 1) for layer in range(log.header.layers)]
    found = routing.coverage(counts, share, sizes)
    busiest = np.sort(counts, axis=None)[::-1]
    wanted = share * counts.sum() - 1e-9
    assert busiest[: found.experts].sum() >= wanted
    assert busiest[: found.experts - 1].sum() < wanted
    assert found.bytes is not None
    assert found.experts * min(sizes) <= found.bytes <= found.experts * max(sizes)
    assert routing.coverage(counts, share, None).bytes is None


@given(logs())
def test_reuse_distances_by_brute_force(log):
    wanted = []
    for layer in range(log.header.layers):
        for expert in range(log.header.experts):
            uses = [t for t in range(len(log.ids)) if expert in log.ids[t, layer]]
            wanted += [later - earlier for earlier, later in pairwise(uses)]
    assert sorted(routing.reuse_distances(log).tolist()) == sorted(wanted)


@given(logs())
def test_overlap_by_brute_force(log):
    shares = [
        len({*log.ids[t, layer]} & {*log.ids[t - 1, layer]}) / log.header.top_k
        for t in range(1, len(log.ids))
        for layer in range(log.header.layers)
    ]
    wanted = float(np.mean(shares)) if shares else None
    assert routing.overlap(log) == (None if wanted is None else pytest.approx(wanted))


@given(logs(), st.integers(1, 18))
def test_replay_divides_what_is_asked_for(log, slots):
    asked = sum(
        len(np.unique(log.ids[log.passes == number, layer]))
        for number in np.unique(log.passes)
        for layer in range(log.header.layers)
    )
    distinct = int((routing.frequencies(log) > 0).sum())
    found = routing.replay(log, slots)
    assert found.hits + found.cold + found.capacity == asked
    assert found.cold == distinct
    if slots >= distinct:
        assert found.capacity == 0


def test_replay_tells_cold_misses_from_capacity_misses():
    log = log_of([[[0]], [[1]], [[0]], [[0]], [[1]]], experts=2, passes=[0, 1, 2, 3, 4])
    one = routing.replay(log, 1)
    assert (one.hits, one.cold, one.capacity) == (1, 2, 2)
    assert one.hit_rate == 0.2
    assert routing.replay(log, 2) == routing.Replay(2, hits=3, cold=2, capacity=0)


def test_tokens_of_one_pass_ask_for_their_experts_once():
    tokens = [[[0, 1]], [[1, 2]], [[1, 2]]]
    together = routing.replay(log_of(tokens, 3, [0, 0, 1]), 3)
    assert (together.hits, together.cold) == (2, 3)
    apart = routing.replay(log_of(tokens, 3, [0, 1, 2]), 3)
    assert (apart.hits, apart.cold) == (3, 3)
