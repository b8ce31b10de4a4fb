"""The native work over all scores against numpy going the same steps, bit for bit, on every
instruction set and whatever the number of threads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe import _native
from flashmoe.kernels import scores as scores_module
from flashmoe.kernels.scores import BLOCK, GUESS, Room, Scores, factor

SETS = _native.instruction_sets()
NOTHING = np.empty(0, np.int64), np.empty(0)
COEFFICIENTS = [float.fromhex(text) for text in (
    "0x1p+0", "0x1.62e42fefa08dcp-1", "0x1.ebfbdff823df0p-3", "0x1.c6b08d7a95072p-5",
    "0x1.3b2ab717fb0b6p-7", "0x1.5d87ebe42d79dp-10", "0x1.4308acc67a164p-13",
    "0x1.fffd75179b1a0p-17", "0x1.63d0ec28f10f2p-20", "0x1.89c489e9e3ae4p-24",
)]  # fmt: skip

every_set = pytest.mark.parametrize("kind", SETS)
sizes = pytest.mark.parametrize("count", (1, 7, 16, 17, 511, 512, 513, 5000, 40_000))


def logits_of(count, spread=3.0, dtype=np.float32):
    return (np.random.default_rng(count).standard_normal(count) * spread).astype(dtype)


def weights_by_numpy(scores, peak, scale):
    """native/draw.h, each step an operation of numpy."""
    t = np.maximum((scores.astype(np.float64) - peak) * scale, -1023.0)
    n = np.rint(t)
    f = t - n
    f2 = f * f
    f4 = f2 * f2
    p01, p23, p45, p67, p89 = (
        high * f + low for low, high in zip(COEFFICIENTS[::2], COEFFICIENTS[1::2], strict=True)
    )
    p = (p01 + p23 * f2) + ((p45 + p67 * f2) + p89 * f4) * f4
    return (p.view(np.int64) + (n.astype(np.int64) << 52)).view(np.float64)


def masses_by_numpy(weights):
    found = []
    for begin in range(0, weights.size, BLOCK):
        block = weights[begin : begin + BLOCK]
        padded = np.append(block, np.zeros(-block.size % 16)).reshape(-1, 2, 8)
        partial = np.zeros(8)
        for step in padded[:, 0] + padded[:, 1]:
            partial = partial + step
        while partial.size > 1:
            half = partial.size // 2
            partial = partial[:half] + partial[half:]
        found.append(partial[0])
    return np.array(found)


def blocks_of(logits):
    return np.empty(-(-logits.size // BLOCK))


@every_set
@pytest.mark.parametrize("temperature", (0.05, 1.0, 100.0))
def test_weights_are_those_of_numpy_and_near_the_exact_ones(kind, temperature):
    scores = np.append(logits_of(3001, 8, np.float64), [1000.0, -1e300, -np.inf])
    peak, found = scores.max(), np.full(scores.size, np.nan)
    _native.weights(scores, peak, factor(temperature), found, kind)
    np.testing.assert_array_equal(found, weights_by_numpy(scores, peak, factor(temperature)))
    scores[-3] = peak = scores[:-3].max()
    _native.weights(scores, peak, factor(temperature), found, kind)
    exact = np.exp2((scores - peak) * factor(temperature))
    assert (np.abs(found - exact) <= 2.0**-43 * exact + 1e-300).all()
    assert found[-3] == 1 and found[-2] == found[-1] == 0


@every_set
@sizes
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_masses_and_peaks_are_those_of_numpy_with_any_number_of_threads(kind, count, dtype):
    logits = logits_of(count, dtype=dtype)
    places = np.unique(np.random.default_rng(1).integers(0, count, 1 + count // 600))
    for changed in (NOTHING, (places, logits[places].astype(np.float64) + 0.7)):
        scores = logits.astype(np.float64)
        scores[changed[0]] = changed[1]
        wanted = masses_by_numpy(weights_by_numpy(scores, scores.max(), factor(0.8)))
        row = _native.Scores(logits, *changed)
        for threads in (1, 3):
            y = blocks_of(logits)
            row.peaks(y, threads, kind)
            highest = [scores[begin : begin + BLOCK].max() for begin in range(0, count, BLOCK)]
            np.testing.assert_array_equal(y, highest)
            row.masses(scores.max(), factor(0.8), y, threads, kind)
            np.testing.assert_array_equal(y, wanted)


@every_set
@sizes
@pytest.mark.parametrize("spread", (0.0, 0.3, 3.0, 30.0))
def test_guesses_are_as_near_as_is_said(kind, count, spread):
    logits = logits_of(count, spread)
    row, peak = _native.Scores(logits, *NOTHING), logits.max()
    y, guessed = blocks_of(logits), blocks_of(logits)
    row.masses(peak, factor(1.0), y, 1, kind)
    row.guesses(peak, factor(1.0), guessed, 2, kind)
    assert np.abs(guessed - y).sum() <= GUESS / 2 * y.sum()
    assert count < 500 or spread == 0 or (guessed != y).any()


@every_set
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("wrong", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("place", (0, 31, 500, 600, 1300))
def test_what_is_not_finite_shows_in_its_block(kind, dtype, wrong, place):
    logits = logits_of(1301, dtype=dtype)
    logits[place] = wrong
    y = blocks_of(logits)
    for changed in (NOTHING, (np.array([3, 700]), np.array([1.0, 2.0]))):
        _native.Scores(logits, *changed).peaks(y, 1, kind)
        assert np.isnan(y).tolist() == [block == place // BLOCK for block in range(3)]


def test_a_score_may_be_changed_to_minus_infinity():
    logits = logits_of(1301)
    best = int(logits.argmax())
    scores = Scores(logits, (np.array([best]), np.array([-np.inf])), Room(), 1)
    logits[best] = -100
    assert scores.best() == int(logits.argmax())
    assert scores.peak == logits.max()


@given(
    rows=st.lists(st.integers(-3, 3), min_size=1, max_size=1500),
    count=st.integers(1, 1600),
    changed=st.booleans(),
)
def test_the_highest_are_the_first_of_a_stable_order(rows, count, changed):
    logits = np.array(rows, np.float32)
    places = np.arange(0, logits.size, 5) if changed else NOTHING[0]
    scores = Scores(logits, (places, np.full(places.size, 1.5)), Room(), 1)
    values = logits.astype(np.float64)
    values[places] = 1.5
    ids, found = scores.highest(count)
    wanted = np.argsort(-values, kind="stable")[:count]
    assert ids.tolist() == wanted.tolist()
    assert found.tolist() == values[wanted].tolist()
    assert scores.best() == wanted[0]
    last = wanted[-1]
    assert scores.last_of(min(count, values.size)) == (last, values[last])
    assert scores.some(3, 9).tolist() == values[3:12].tolist() if values.size > 3 else True


@pytest.mark.parametrize("levels", (None, 1))
@pytest.mark.parametrize("count", (20, 700, 2500, 9000))
def test_the_highest_of_many_are_found_whatever_is_thrown_away_between(levels, count):
    logits = np.sort(logits_of(20_001))  # rising: each throws out what was best before
    if levels:
        logits = np.round(logits * levels)
    for row in (logits, logits[::-1].copy(), logits_of(20_001)):
        scores = Scores(row, NOTHING, Room(), 1)
        wanted = np.argsort(-row, kind="stable")[:count]
        assert scores.highest(count)[0].tolist() == wanted.tolist()
        assert scores.last_of(count) == (wanted[-1], row[wanted[-1]])


@pytest.mark.parametrize("most", (0.0, 1.0, 17.0, 1e9))
def test_the_depth_is_that_of_the_lowest_or_more_than_enough(most):
    for count in (1, 511, 513, 5000):
        logits = logits_of(count)
        found = Scores(logits, NOTHING, Room(), 1).depth(most)
        exact = float(logits.max()) - float(logits.min())
        assert found == exact if exact <= most else most < found <= exact


@every_set
@sizes
@pytest.mark.parametrize("min_p", (0.01, 0.3, 1.0))
def test_sums_of_what_min_p_keeps_are_those_of_numpy(kind, count, min_p):
    logits = logits_of(count, 1.0)
    row, peaks, y = _native.Scores(logits, *NOTHING), blocks_of(logits), blocks_of(logits)
    row.peaks(peaks, 1, kind)
    weights = weights_by_numpy(logits, logits.max(), factor(0.8))
    least = logits[weights >= min_p].min()
    row.kept_sums(peaks, least, logits.max(), factor(0.8), min_p, y, kind)
    sums = np.cumsum(np.where(weights >= min_p, weights, 0.0))
    ends = np.minimum(np.arange(1, y.size + 1) * BLOCK, count) - 1
    np.testing.assert_array_equal(y, sums[ends])


@every_set
@sizes
@pytest.mark.parametrize("min_p", (0.0, 0.3))
@pytest.mark.parametrize("spread", (0.0, 1.0, 2000.0))
def test_slices_and_their_sums_are_those_of_numpy(kind, count, min_p, spread):
    logits = np.round(logits_of(count, spread))  # many equal to the last
    peak, middle = float(logits.max()), count // 2
    weights = weights_by_numpy(logits, peak, factor(0.8))
    wanted = np.minimum((logits.astype(np.float64) - peak) / 0.8 * -9.5, 39.0).astype(np.uint16)
    for least, last in ((-np.inf, count), (float(np.sort(logits)[middle]), middle)):
        beyond = (logits == least) & (np.arange(count) > last)
        taken = np.where((logits < least) | beyond, 0.0, weights)
        kept = (taken > 0) & (taken >= min_p)
        numbers, y = np.empty(count, np.uint16), np.empty(40)
        total = _native.Scores(logits, *NOTHING).slices(
            peak, factor(0.8), 0.8, -9.5, least, last, min_p, numbers, y, kind
        )
        np.testing.assert_array_equal(numbers, np.where(kept, wanted, 0xFFFF))
        np.testing.assert_array_equal(y, np.bincount(wanted[kept], taken[kept], 40))
        assert total == np.cumsum(taken)[-1]


@given(
    rows=st.lists(st.integers(-3, 3), min_size=1, max_size=1500),
    temperature=st.sampled_from([0.5, 2.0]),
    changed=st.booleans(),
)
def test_the_members_of_slices_are_all_that_is_not_left_out(rows, temperature, changed):
    logits = np.array(rows, np.float32)
    places = np.arange(0, logits.size, 5) if changed else NOTHING[0]
    values = logits.astype(np.float64)
    values[places] = 1.5
    room = Room()
    room.places, room.values = np.empty(10, np.int64), np.empty(10)
    scores = Scores(logits, (places, np.full(places.size, 1.5)), room, 1)
    left = values > 1
    left[: logits.size // 2] |= (values == 1)[: logits.size // 2]
    scores.slices(temperature, -temperature, (logits.size // 2 - 1, 1.0), 0.0, 4)
    for number in range(4):
        wanted = left & (np.minimum(values.max() - values, 3).astype(int) == number)
        ids, found = scores.members(number)
        assert ids.tolist() == np.flatnonzero(wanted).tolist()
        assert found.tolist() == values[wanted].tolist()


def test_more_than_there_was_room_for_is_found(monkeypatch):
    monkeypatch.setattr(scores_module, "_SMALL", 10)
    scores = Scores(logits_of(3000), NOTHING, Room(), 1)
    places, values = scores.above(-np.inf)
    assert places.tolist() == list(range(3000))
    assert values.tolist() == logits_of(3000).tolist()


def test_wrong_arguments_are_refused():
    logits, y = logits_of(1000), np.empty(2)
    for places in ([1, 1], [3, 2], [-1, 2], [1, 1000]):
        with pytest.raises(ValueError, match="place"):
            _native.Scores(logits, np.array(places), np.zeros(2))
    with pytest.raises(ValueError, match="every place needs a value"):
        _native.Scores(logits, np.arange(2), np.zeros(3))
    with pytest.raises(ValueError, match="there are no logits"):
        _native.Scores(logits[:0], *NOTHING)
    with pytest.raises(TypeError, match="float32 or float64"):
        _native.Scores(logits.astype(np.float16), *NOTHING)
    row = _native.Scores(logits, *NOTHING)
    with pytest.raises(ValueError, match="a number for each block"):
        row.peaks(np.empty(1), 1)
    with pytest.raises(ValueError, match="not so many"):
        row.widen(999, y)
    with pytest.raises(ValueError, match="threads"):
        row.peaks(y, 0)
    for wrong in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="factor"):
            row.masses(0.0, wrong, y, 1)
    with pytest.raises(ValueError, match="from 1 to all"):
        row.highest(y, 0.0, True, np.empty(1001, np.int64), np.empty(1001))
    numbers = np.empty(1000, np.uint16)
    for temperature, steps in ((0.0, -1.0), (1.0, 0.0), (np.nan, -1.0)):
        with pytest.raises(ValueError, match="temperature must be above 0, and steps below"):
            row.slices(0.0, 1.0, temperature, steps, 0.0, 0, 0.0, numbers, y)
    with pytest.raises(ValueError, match="every score needs a slice"):
        row.slices(0.0, 1.0, 1.0, -1.0, 0.0, 0, 0.0, numbers[1:], y)
    with pytest.raises(ValueError, match="every score needs a slice"):
        row.members(numbers[1:], 0, np.empty(2, np.int64), y)
    with pytest.raises(ValueError, match="must be as many"):
        row.members(numbers, 0, np.empty(3, np.int64), y)
    with pytest.raises(ValueError, match="no slices, or too many"):
        row.slices(0.0, 1.0, 1.0, -1.0, 0.0, 0, 0.0, numbers, np.empty(65_535))
    with pytest.raises(ValueError, match="guesses are of float32"):
        _native.Scores(logits.astype(np.float64), *NOTHING).guesses(0.0, 1.0, y, 1)
