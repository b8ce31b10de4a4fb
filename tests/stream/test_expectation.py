"""What a chunk is expected to want: all, what a sample says, or only what has proved right."""

from __future__ import annotations

import numpy as np
import pytest

from flashmoe.quant import Array
from flashmoe.stream.expectation import SAMPLE_TOKENS, Expectation, sample

EXPERTS = 16


def refuse() -> Array:
    raise AssertionError("ranked for nothing")


def rows(*ids: int) -> Array:
    return np.array(ids).reshape(-1, 2)


def test_where_the_layer_before_wanted_nearly_all_this_one_does() -> None:
    policy = Expectation(EXPERTS)
    policy.learn(0, 100, range(EXPERTS))
    assert policy.choose(1, 100, refuse) == list(range(EXPERTS))
    assert policy.choose(1, 200, refuse) == list(range(EXPERTS))
    assert policy.choose(1, 50, lambda: rows(0, 1)) == [0, 1]  # fewer tokens want fewer
    policy.learn(1, 100, range(15))
    assert policy.choose(2, 100, lambda: rows(0, 1)) == [0, 1]


def test_what_a_sample_chose_often_is_expected_and_what_it_chose_once_is_not_at_first() -> None:
    policy = Expectation(EXPERTS)
    assert policy.choose(1, 4, lambda: rows(9, 1, 9, 2, 9, 3, 9, 1)) == [1, 9]
    # One of four stands for 10 of 40 tokens.
    assert policy.choose(1, 40, lambda: rows(9, 1, 9, 2, 9, 3, 9, 1)) == [1, 2, 3, 9]


def test_each_kind_of_guess_is_trusted_as_it_has_been_right() -> None:
    policy = Expectation(EXPERTS)

    def early() -> Array:
        return rows(9, 1, 9, 2)

    for _ in range(10):
        policy.choose(1, 2, early)
        policy.learn(1, 2, [1, 2, 9])
    assert policy.choose(1, 2, early) == [1, 2, 9]
    for _ in range(10):
        policy.choose(1, 2, early)
        policy.learn(1, 2, [5])
    assert policy.choose(1, 2, early) == []


def test_other_layers_teach_nothing_of_guesses() -> None:
    policy = Expectation(EXPERTS)
    for _ in range(50):
        policy.choose(1, 2, lambda: rows(9, 1, 9, 2))
        policy.learn(0, 2, [5])
    assert policy.choose(1, 2, lambda: rows(9, 1, 9, 2)) == [9]


@pytest.mark.parametrize("tokens", [2, 63, 64, 65, 100, 128, 129, 1000])
def test_a_sample_is_of_tokens_from_all_along_a_chunk(tokens: int) -> None:
    x = np.arange(tokens, dtype=np.float32)[:, None]
    found = sample(x)
    assert min(tokens, SAMPLE_TOKENS // 2) <= len(found) <= SAMPLE_TOKENS
    steps = np.diff(found[:, 0])
    assert found[0] == 0 and (steps == steps[0]).all() and tokens - found[-1, 0] <= steps[0]
    assert not np.shares_memory(found, x)
