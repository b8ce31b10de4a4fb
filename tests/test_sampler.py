"""The draw against its definitions, written out plainly here."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from flashmoe.errors import InputError, StoreError
from flashmoe.kernels.scores import Room, Scores
from flashmoe.options import Sampling
from flashmoe.sampler import Choice, Sampler, _drawn, descending

Logits = NDArray[np.float32]
LEVELS = st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 2.5, 4.0])
ROWS = st.lists(LEVELS, min_size=1, max_size=12).map(lambda row: np.array(row, dtype=np.float32))


def drawn(logits: Logits, count: int, **options: Any) -> list[int]:
    sampler = Sampler(Sampling(seed=7, **options))
    return [sampler(logits).id for _ in range(count)]


def survivors(logits: Logits, options: Sampling) -> set[int]:
    """Top-k, top-p and min-p in that order, one token at a time."""
    ranked = sorted(range(logits.size), key=lambda id: (-logits[id], id))
    if options.top_k:
        ranked = ranked[: options.top_k]
    weights = [np.exp(float(logits[id]) / options.temperature) for id in ranked]
    kept, mass = [], 0.0
    for id, weight in zip(ranked, weights, strict=True):
        if options.top_p == 1 or mass < options.top_p * sum(weights) * (1 - 1e-12):
            kept.append((id, weight))
        mass += weight
    return {id for id, weight in kept if weight >= options.min_p * weights[0] * (1 - 1e-12)}


def test_greedy_takes_the_best_and_ties_go_to_the_lowest_id() -> None:
    assert drawn(np.array([1, 5, 3, 5], dtype=np.float32), 3, temperature=0.0) == [1, 1, 1]


def test_greedy_goes_after_the_penalties() -> None:
    sampler = Sampler(Sampling(temperature=0.0, presence_penalty=1.5))
    assert [sampler(np.array([2.0, 1.0, 0.0])).id for _ in range(4)] == [0, 1, 0, 0]


@given(
    logits=ROWS,
    top_k=st.integers(0, 6),
    top_p=st.sampled_from([0.05, 0.3, 0.7, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.03, 0.3, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_only_survivors_of_the_filters_are_drawn(
    logits: Logits, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    options: dict[str, Any] = {
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "temperature": temperature,
    }
    allowed = survivors(logits, Sampling(**options))
    seen = set(drawn(logits, 60, **options))
    assert seen <= allowed
    if len(allowed) == 1:
        assert seen == allowed


def drawn_plainly(logits: Logits, options: Sampling) -> int:
    """The first draw of a sampler, with the whole vocabulary sorted and summed in order."""
    scaled = (logits.astype(np.float64) - float(logits.max())) / options.temperature
    ids = np.arange(logits.size)
    top_k = options.top_k if options.top_k < logits.size else 0
    if top_k or options.top_p < 1:
        ids = np.argsort(-scaled, kind="stable")[: top_k or logits.size]
    weights = np.exp(scaled[ids])
    if options.top_p < 1:
        total = (weights if top_k else np.exp(scaled)).sum()
        reached = np.searchsorted(np.cumsum(weights), options.top_p * total, side="left")
        ids, weights = ids[: reached + 1], weights[: reached + 1]
    kept = weights >= options.min_p
    ids, cumulative = ids[kept], np.cumsum(weights[kept])
    share = np.random.default_rng(options.seed).random()
    place = np.searchsorted(cumulative, share * cumulative[-1], side="right")
    return int(ids[min(int(place), ids.size - 1)])


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("words", [1, 300, 9_000])
def test_shortcuts_draw_what_a_whole_sort_would(
    words: int, spread: float, levels: int | None
) -> None:
    rng = np.random.default_rng([words, int(spread * 10), levels or 0])
    settings = itertools.product(
        (0.6, 1.0, 40.0), (0, 1, 20, 4096, 6000), (0.05, 0.5, 0.95, 0.999, 1.0), (0.0, 1e-3, 0.2)
    )
    for seed, (temperature, top_k, top_p, min_p) in enumerate(settings):
        logits = (rng.standard_normal(words) * spread).astype(np.float32)
        if levels:  # many words of equal score
            logits = np.round(logits * levels) / np.float32(levels)
        options = Sampling(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
        )
        assert Sampler(options)(logits).id == drawn_plainly(logits, options), options


@pytest.mark.parametrize("spread", [1.5, 3.0, 10.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_float32_decides_no_draw_that_float64_would_not(
    spread: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At random and where the sums of two neighbours meet, a little below and above."""
    logits = (np.random.default_rng(4).standard_normal(20_001) * spread).astype(np.float32)
    nothing = np.empty(0, np.int64), np.empty(0)
    options = Sampling(temperature=temperature)
    exact = np.cumsum(np.exp((logits.astype(np.float64) - logits.max()) / temperature))
    edges = np.random.default_rng(5).choice(exact, 40) / exact[-1]
    near = [edge * (1 + off) for edge in edges for off in (-1e-4, -1e-5, -1e-6, -1e-9, 1e-9, 1e-6)]
    shares = [share for share in (0.0, *near, *np.random.default_rng(6).random(200)) if share < 1]
    scores = Scores(logits, nothing, Room(), 1)
    asked: list[float] = []
    masses = Scores.masses
    monkeypatch.setattr(Scores, "masses", lambda self, t: asked.append(t) or masses(self, t))
    drawn = [_drawn(scores, options, share) for share in shares]
    assert 40 <= len(asked) < len(shares)  # those that are too near are left to float64
    monkeypatch.setattr(Scores, "guesses", lambda *_: None)
    assert drawn == [_drawn(scores, options, share) for share in shares]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.4}, {0}),
        ({"top_p": 0.41}, {0, 1}),
        ({"top_p": 0.75}, {0, 1, 2}),
        ({"top_k": 2, "top_p": 0.57}, {0}),
        ({"top_k": 2, "top_p": 0.58}, {0, 1}),
        ({"min_p": 0.5}, {0, 1, 2}),
        ({"min_p": 0.51}, {0, 1}),
        ({"min_p": 0.4, "temperature": 0.5}, {0, 1}),
    ],
    ids=str,
)
def test_filters_on_probabilities_by_hand(options: dict[str, Any], expected: set[int]) -> None:
    logits = np.log(np.array([0.4000001, 0.2999999, 0.2000001, 0.0999999]))
    assert set(drawn(logits, 400, **options)) == expected


def test_equal_scores_at_the_edge_of_top_k_go_to_the_lowest_ids() -> None:
    assert set(drawn(np.array([1, 2, 1, 2, 1], dtype=np.float32), 200, top_k=3)) == {0, 1, 3}


def test_the_token_that_reaches_top_p_exactly_is_the_last() -> None:
    assert set(drawn(np.zeros(4, dtype=np.float32), 200, top_p=0.5)) == {0, 1}


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.999999}, {"min_p": 1e-9}])
def test_frequencies_follow_the_softmax(options: dict[str, Any]) -> None:
    probabilities = np.array([0.1, 0.4, 0.3, 0.2])
    ids = drawn(2 * np.log(probabilities), 8000, temperature=2.0, **options)
    counts = np.bincount(ids, minlength=4) / len(ids)
    assert np.abs(counts - probabilities).max() < 0.02  # 3.6 standard deviations of 0.4


def test_a_wide_nucleus_is_found_beyond_the_sorting_windows() -> None:
    logits = np.zeros(20_000, dtype=np.float32)
    logits[0] = 1.0
    ids = drawn(logits, 300, top_p=0.5)
    assert max(ids) <= 10_000
    assert max(ids) > 9_000


def test_a_tiny_temperature_is_greedy() -> None:
    logits = np.array([1.0, 1.0001, -50.0], dtype=np.float32)
    assert set(drawn(logits, 50, temperature=1e-300)) == {1}


def test_a_seed_repeats_the_draws_and_another_does_not() -> None:
    logits = np.zeros(1000, dtype=np.float32)

    def run(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(seed=seed))
        return [sampler(logits).id for _ in range(8)]

    assert run(3) == run(3)
    assert run(-1) == run(-1)
    assert run(2**70) == run(2**70)
    assert run(3) != run(4)
    assert run(None) != run(None)


def test_the_draw_does_not_depend_on_the_dtype_of_the_logits() -> None:
    logits = np.random.default_rng(1).normal(size=500).astype(np.float32)
    assert drawn(logits, 20, top_p=0.9) == drawn(logits.astype(np.float64), 20, top_p=0.9)


def test_the_repetition_penalty_counts_prompt_and_reply_once() -> None:
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=2.0), prompt_ids=[0, 0, 4, 99])
    logits = np.array([6.0, 4.0, -1.0, 3.5, -1.5])
    assert sampler(logits).id == 1  # 0 is worth 3 now
    assert sampler(logits).id == 3  # 1 is worth 2
    assert sampler(logits).id == 0  # 3 is worth 1.75; a second sight changes nothing


def test_a_negative_logit_is_penalized_by_the_product() -> None:
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=2.0), prompt_ids=[0])
    assert sampler(np.array([-1.0, -1.5, -3.0])).id == 1


def test_presence_and_frequency_count_the_reply_alone() -> None:
    logits = np.array([3.0, 2.0, 0.0])
    presence = Sampler(Sampling(temperature=0.0, presence_penalty=1.5), prompt_ids=[0, 0, 0])
    assert [presence(logits).id for _ in range(4)] == [0, 1, 0, 0]
    frequency = Sampler(Sampling(temperature=0.0, frequency_penalty=0.75), prompt_ids=[0, 0, 0])
    # 3, 2.25, 1.5 | 2, 1.25 …
    assert [frequency(logits).id for _ in range(5)] == [0, 0, 1, 0, 1]


def test_a_negative_presence_penalty_encourages() -> None:
    sampler = Sampler(Sampling(temperature=0.0, presence_penalty=-2.0))
    assert [sampler(np.array([1.0, 1.0, 2.0])).id, sampler(np.array([2.5, 1.0, 1.0])).id] == [2, 2]


@given(logits=ROWS, wanted=st.integers(0, 14))
def test_log_probabilities_are_those_of_the_unmodified_logits(logits: Logits, wanted: int) -> None:
    sampler = Sampler(
        Sampling(temperature=0.3, top_k=1, presence_penalty=2.0, logprobs=wanted, seed=0)
    )
    sampler(logits)
    choice = sampler(logits)
    exact = np.exp(logits.astype(np.float64))
    expected = np.log(exact / exact.sum())
    assert choice.logprob == pytest.approx(expected[choice.id], abs=1e-12)
    assert len(choice.top) == min(wanted, logits.size)
    ranked = sorted(range(logits.size), key=lambda id: (-logits[id], id))[:wanted]
    assert [id for id, _ in choice.top] == ranked
    for id, logprob in choice.top:
        assert logprob == pytest.approx(expected[id], abs=1e-12)


def test_large_logits_keep_their_log_probabilities() -> None:
    choice = Sampler(Sampling(temperature=0.0, logprobs=2))(np.array([1e4, 1e4, -1e30]))
    assert choice.logprob == pytest.approx(-np.log(2))
    assert choice.top[1][0] == 1
    assert choice.top[1][1] == pytest.approx(-np.log(2))


def test_log_probabilities_are_not_computed_unasked() -> None:
    assert Sampler(Sampling(temperature=0.0))(np.array([0.0, 1.0])) == Choice(1, None, ())


def test_padding_of_the_output_matrix_is_never_chosen() -> None:
    logits = np.array([0.0, 1.0, 9.0, np.nan])
    sampler = Sampler(Sampling(temperature=0.0, logprobs=5), vocab_size=2)
    choice = sampler(logits)
    assert choice.id == 1
    assert [id for id, _ in choice.top] == [1, 0]
    assert choice.logprob == pytest.approx(1 - np.log(1 + np.e))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    logits = np.array([0.0, 1.0, value, value], dtype=np.float32)
    with pytest.raises(StoreError, match=r"2 of 4 logits are not finite \(id 2 is .*verify"):
        Sampler(Sampling(temperature=0.0))(logits)


@pytest.mark.parametrize(
    ("shape", "vocab_size"), [((2, 3), None), ((), None), ((0,), None), ((3,), 4), ((3,), 0)]
)
def test_a_wrong_shape_is_refused(shape: tuple[int, ...], vocab_size: int | None) -> None:
    sampler = Sampler(Sampling(), vocab_size=vocab_size)
    with pytest.raises(InputError, match="one position's row"):
        sampler(np.zeros(shape, dtype=np.float32))


def test_the_logits_are_not_changed() -> None:
    logits = np.array([1.0, 2.0, 3.0])
    Sampler(Sampling(presence_penalty=1.0, repetition_penalty=2.0), [0, 1])(logits)
    assert logits.tolist() == [1.0, 2.0, 3.0]


@given(logits=ROWS, count=st.integers(1, 14))
def test_descending_is_the_stable_order(logits: Logits, count: int) -> None:
    ranked = sorted(range(logits.size), key=lambda id: (-logits[id], id))[:count]
    assert descending(logits.astype(np.float64), count).tolist() == ranked


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0.2},
        {"top_p": 0.9, "top_k": 5000},
        {"repetition_penalty": 1.5, "presence_penalty": 1.0},
    ],
)
@given(logits=ROWS, data=st.data())
def test_only_what_the_mask_admits_is_chosen(
    options: dict[str, float], logits: Logits, data: st.DataObject
) -> None:
    kept = data.draw(
        st.lists(st.booleans(), min_size=logits.size, max_size=logits.size).filter(any)
    )
    mask = np.array(kept)
    sampler = Sampler(Sampling(seed=data.draw(st.integers(0, 99)), **options), [0])
    choice = sampler(logits, mask)
    assert mask[choice.id]
    if mask.sum() == 1:
        assert choice.id == int(np.argmax(mask))


@pytest.mark.parametrize("options", [{}, {"top_p": 0.8}, {"top_k": 4500}, {"min_p": 0.01}])
def test_a_masked_draw_is_that_of_the_tokens_left(options: dict[str, float]) -> None:
    """A wide vocabulary goes through slices, in which a token shut out weighs nothing."""
    noise = np.random.default_rng(1)
    logits, mask = noise.normal(size=9000), noise.random(9000) < 0.6
    left = np.flatnonzero(mask)
    for seed in range(20):
        sampling = Sampling(seed=seed, **options)
        alone = Sampler(sampling)(logits[left]).id
        assert Sampler(sampling)(logits, mask).id == left[alone]


def test_log_probabilities_know_nothing_of_the_mask() -> None:
    logits, sampling = np.array([3.0, 1.0, 2.0]), Sampling(temperature=0, logprobs=3)
    choice = Sampler(sampling)(logits, np.array([False, True, False]))
    assert choice.id == 1
    assert choice.top == Sampler(sampling)(logits).top
    assert choice.logprob == dict(choice.top)[1]


def test_a_mask_that_admits_nothing_or_does_not_fit_is_refused() -> None:
    for temperature in (0.0, 1.0):
        sampler = Sampler(Sampling(temperature=temperature))
        with pytest.raises(InputError, match="admits no token"):
            sampler(np.zeros(3), np.zeros(3, np.bool_))
        with pytest.raises(InputError, match=r"shape \(4,\) for a vocabulary of 3"):
            sampler(np.zeros(3), np.ones(4, np.bool_))
