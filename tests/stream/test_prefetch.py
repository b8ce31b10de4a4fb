"""Which guesses are read: few where the disk is hardly idle, none that are too unlikely."""

from __future__ import annotations

import pytest

from flashmoe.stream.prefetch import LEAST, WIDTH, Prefetch

TOP_K = 4
RANKED = list(range(10, 10 + WIDTH * TOP_K))
NONE = [False] * len(RANKED)  # is in memory


def taught(chosen: int, *, read_ms: float, idle_ms: float) -> Prefetch:
    """A policy that has seen the first ``chosen`` ranks come true 200 times, and no other."""
    policy = Prefetch(2, TOP_K)
    for _ in range(200):
        policy.choose(1, RANKED, NONE)
        policy.learn(1, RANKED[:chosen])
        policy.read(read_ms)
        policy.idle(1, idle_ms)
    return policy


@pytest.mark.parametrize(
    ("idle_ms", "reads"), [(0.05, 1), (0.95, 1), (1.05, 2), (2.9, 3), (3.9, 4), (100.0, 4)]
)
def test_as_many_are_read_as_the_idle_time_allows(idle_ms: float, reads: int) -> None:
    policy = taught(4, read_ms=1.0, idle_ms=idle_ms)
    assert policy.choose(1, RANKED, NONE) == RANKED[:reads]


def test_what_is_in_memory_is_passed_over() -> None:
    policy = taught(4, read_ms=1.0, idle_ms=2.5)
    assert policy.choose(1, RANKED, [expert in (10, 12) for expert in RANKED]) == [11, 13]


def test_a_rank_that_never_comes_true_is_not_read_however_idle_the_disk() -> None:
    policy = taught(2, read_ms=1.0, idle_ms=100.0)
    assert policy.choose(1, RANKED, NONE) == RANKED[:2]
    assert policy.chance(RANKED[0]) > 0.9
    assert policy.chance(RANKED[5]) < LEAST


def test_a_read_that_would_hardly_begin_needs_a_sure_guess() -> None:
    policy = taught(0, read_ms=1.0, idle_ms=0.3)
    for number in range(400):  # the first rank comes true every other time
        policy.choose(1, RANKED, NONE)
        policy.learn(1, RANKED[: number % 2])
    assert policy.choose(1, RANKED, NONE) == []
    for _ in range(200):
        policy.idle(1, 0.9)
    assert policy.choose(1, RANKED, NONE) == RANKED[:1]


def test_a_routing_of_another_layer_teaches_nothing() -> None:
    one, other = Prefetch(2, TOP_K), Prefetch(2, TOP_K)
    for policy in (one, other):
        policy.choose(1, RANKED, NONE)
    one.learn(0, [1, 2])
    assert one.choose(1, RANKED, NONE) == other.choose(1, RANKED, NONE)
    assert [one.chance(expert) for expert in RANKED] == [other.chance(e) for e in RANKED]


def test_guessing_stops_where_it_costs_more_than_was_ever_waited() -> None:
    policy = Prefetch(2, TOP_K)
    assert policy.pays(0) and policy.pays(1)
    policy.cost(0.05)
    for _ in range(100):
        policy.waited(0, 0.01, 0)
        policy.waited(1, 2.0, 0)
    assert not policy.pays(0)
    assert policy.pays(1)


def test_a_cost_from_a_bad_moment_is_measured_again() -> None:
    policy = Prefetch(1, TOP_K)
    policy.waited(0, 0.3, 0)
    policy.cost(50.0)
    assert not policy.pays(0)
    assert any(policy.pays(0) for _ in range(100))
    policy.cost(0.05)
    assert policy.pays(0)


def test_reads_that_guesses_have_spared_count_as_waiting() -> None:
    policy = Prefetch(1, TOP_K)
    policy.cost(0.05)
    policy.read(1.0)
    for _ in range(100):
        policy.waited(0, 0.0, 1)
    assert policy.pays(0)
