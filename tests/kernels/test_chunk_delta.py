"""The gated delta net of several tokens: against its steps, its twin, and itself cut elsewhere."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from flashmoe import _native
from flashmoe.kernels import cpu, mixers, reference
from flashmoe.kernels.mixers import DeltaWeights
from flashmoe.shape import RecurrentShape
from tests.kernels.test_decode import F64, near, normal, widened
from tests.tolerances import MIXER, NORM, STEP_FORM

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67)
COUNTS = (*PRIMES, 64, 65, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 128, 129, 131, 137,
          139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 192, 193, 197, 199, 200)  # fmt: skip

SHAPES = {
    "published": RecurrentShape(2, 4, 128, 128, 4),
    "as many keys as values": RecurrentShape(3, 3, 24, 40, 2),
    "four values a key": RecurrentShape(2, 8, 40, 24, 3),
    "odd": RecurrentShape(3, 9, 20, 39, 4),
    "narrow": RecurrentShape(1, 1, 5, 3, 1),
    "wide": RecurrentShape(1, 2, 70, 150, 5),
}

every_set = pytest.mark.parametrize("kind", _native.instruction_sets())
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def case(shape, count):
    """Inputs of so many tokens, weights, and a state in which to begin."""
    channels, heads = shape.conv_channels, shape.value_heads
    small = normal(1, channels, shape.conv_kernel), -np.exp(normal(2, heads)), normal(3, heads)
    weights = DeltaWeights(shape, 1e-6, *small, normal(4, shape.value_dim))
    inputs = [normal(5, count, channels), normal(6, count, heads * shape.value_dim),
              normal(7, count, heads), normal(8, count, heads) * 3]  # fmt: skip
    state = (normal(9, heads, shape.key_dim, shape.value_dim),
             normal(10, shape.conv_kernel - 1, channels))  # fmt: skip
    return inputs, weights, state


def wide(arrays):
    return tuple(array.astype(F64) for array in arrays)


def exact(inputs, weights, state, start=0):
    y, after = mixers.gated_delta(*wide(inputs), widened(weights), wide(state), start=start)
    return y, *after


def native(inputs, weights, state, start=0, threads=1, kind=""):
    after = [np.full_like(array, np.nan) for array in state]
    y = np.full(inputs[1].shape, np.nan, np.float32)
    arrays = *inputs, state[1], state[0], after[1], after[0], y
    cpu._delta(weights).chunk(*arrays, start, threads, kind)
    return y, *after


def in_pieces(edges, inputs, weights, state, **given):
    """The same in passes that end at ``edges``."""
    pieces, begin = [], 0
    for end in edges:
        y, *state = native([a[begin:end] for a in inputs], weights, state, begin, **given)
        pieces.append(y)
        begin = end
    return np.concatenate(pieces), *state


def all_near(got, wanted, tolerance):
    pairs = zip(got, wanted, strict=True)
    return all(a.shape == b.shape and (not a.size or near(a, b, tolerance)) for a, b in pairs)


def same(got, wanted):
    return all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


@cache
def steps():
    """A timeline one token at a time, in float64: the case, each y, the state before each."""
    inputs, weights, state = case(RecurrentShape(2, 4, 6, 5, 4), 271)
    inputs, weights, state = wide(inputs), widened(weights), wide(state)
    rows, states = [], [state]
    for t in range(271):
        y, state = mixers.gated_delta(*(a[t : t + 1] for a in inputs), weights, state)
        rows.append(y)
        states.append(state)
    return inputs, weights, np.concatenate(rows), states


@pytest.mark.parametrize("start", (0, 1, *PRIMES, 62, 63, 64, 65, 70))
def test_the_twin_gives_what_its_steps_give_wherever_it_begins_and_ends(start):
    inputs, weights, rows, states = steps()
    for count in COUNTS:
        part = slice(start, start + count)
        y, after = mixers.gated_delta(*(a[part] for a in inputs), weights, states[start],
                                      start=start)  # fmt: skip
        assert np.abs(y - rows[part]).max() < STEP_FORM
        for one, other in zip(after, states[start + count], strict=True):
            assert np.abs(one - other).max() < STEP_FORM


def test_blocks_end_at_multiples_of_the_timeline():
    assert reference.blocks(0, 130) == [slice(0, 64), slice(64, 128), slice(128, 130)]
    assert reference.blocks(60, 10) == [slice(0, 4), slice(4, 10)]
    assert reference.blocks(128, 64) == [slice(0, 64)]
    assert reference.blocks(65, 2) == [slice(0, 2)]


@every_set
@every_shape
@pytest.mark.parametrize("start", (0, 1, 31, 61, 63))
def test_native_is_near_its_twin(shape, start, kind):
    for count in (2, 3, 5, 33, 64, 67, 140):
        given = case(shape, count)
        kept = [array.copy() for array in given[2]]
        got = native(*given, start, 1, kind)
        assert all_near(got, exact(*given, start), MIXER)
        assert same(given[2], kept)


@every_set
@every_shape
def test_cuts_at_multiples_of_a_block_and_threads_leave_every_bit(shape, kind):
    given = case(shape, 200)
    whole = native(*given, kind=kind)
    for edges in ((64, 200), (128, 200), (64, 128, 192, 200)):
        assert same(in_pieces(edges, *given, kind=kind), whole)
    for threads in (2, 3, 5, 16):
        assert same(native(*given, threads=threads, kind=kind), whole)


@every_set
def test_cuts_elsewhere_are_near(kind):
    given = case(SHAPES["odd"], 200)
    whole = native(*given, kind=kind)
    assert all_near(in_pieces((2, 9, 63, 65, 131, 200), *given, kind=kind), whole, MIXER)


@every_set
@pytest.mark.parametrize("name", ("published", "odd"))
def test_a_chunk_is_near_its_decode_steps(name, kind):
    inputs, weights, state = case(SHAPES[name], 90)
    got, after = native(inputs, weights, state, kind=kind), state
    rows = []
    for t in range(90):
        before, after = after, tuple(np.empty_like(a) for a in state)
        y, row = np.empty_like(inputs[1][:1]), [a[t : t + 1] for a in inputs]
        arrays = *row, before[1], before[0], after[1], after[0], y
        cpu._delta(weights).step(*arrays, 1, kind)
        rows.append(y)
    assert all_near(got, (np.concatenate(rows), *after), MIXER)


@every_set
@pytest.mark.parametrize("name", ("published", "odd"))
def test_decays_from_none_to_all(name, kind):
    """e^-50 a token, none at all, and one after the other: sums of logarithms lose no digits."""
    inputs, weights, state = case(SHAPES[name], 150)
    for value in (50.0, -1e4, 1e4):
        inputs[3][:] = value
        alone = replace(weights, decay=np.full_like(weights.decay, -1), dt_bias=0 * weights.dt_bias)
        assert all_near(native(inputs, alone, state, kind=kind), exact(inputs, alone, state), MIXER)
    inputs[3][:] = -3
    inputs[3][10:20] = 300
    assert all_near(native(inputs, alone, state, kind=kind), exact(inputs, alone, state), MIXER)


@every_set
def test_what_is_not_finite_shows_from_there_on(kind):
    shape = SHAPES["odd"]
    for number in range(4):
        inputs, weights, state = case(shape, 100)
        inputs[number][70, -1] = np.nan  # of the last value head
        y, delta, _ = native(inputs, weights, state, kind=kind)
        y = y.reshape(100, 9, 39)
        assert np.isnan(y[70, 8]).any()
        assert np.isfinite(y[:68]).all() and np.isfinite(y[:, :8]).all()
        assert np.isfinite(delta[:8]).all()
        if number != 1:  # z gates what comes out, and no more
            assert np.isnan(y[71:, 8]).any(-1).all() and np.isnan(delta[8]).any()
    inputs, weights, state = case(shape, 100)
    state[0][2, 3, 4] = np.nan
    y, delta, _ = native(inputs, weights, state, kind=kind)
    assert np.isnan(y.reshape(100, 9, 39)[:, 2]).all(-1).all() and np.isnan(delta[2]).any()
    assert np.isfinite(y.reshape(100, 9, 39)[:, 3:]).all()


def test_wrong_shapes_are_refused():
    inputs, weights, state = case(SHAPES["narrow"], 3)
    with pytest.raises(ValueError, match="channels"):
        native([inputs[0][:, :-1].copy(), *inputs[1:]], weights, state)
    with pytest.raises(ValueError, match="value dim"):
        native([inputs[0], inputs[1][:-1], *inputs[2:]], weights, state)
    with pytest.raises(ValueError, match="start"):
        native(inputs, weights, state, -1)
    with pytest.raises(ValueError, match="overwrite"):
        cpu.gated_delta(*inputs, weights, state, state, threads=1)


@pytest.mark.parametrize("rows", (1, 7, 600))
def test_rows_and_sums_are_the_same_on_any_number_of_threads(rows):
    x, weight = normal(1, rows, 515), normal(2, 515)
    normed = cpu.rms_norm(x, weight, 1e-6, threads=1)
    assert near(normed, reference.rms_norm(x.astype(F64), weight, 1e-6), NORM)
    for threads in (1, 2, 3):
        assert np.array_equal(cpu.rms_norm(x, weight, 1e-6, threads=threads), normed)
        y = normed.copy()
        assert cpu.add(y, x, threads=threads) is y
        assert np.array_equal(y, normed + x)
    with pytest.raises(ValueError, match="as large"):
        cpu.add(normed[:, :-1].copy(), x, threads=1)
