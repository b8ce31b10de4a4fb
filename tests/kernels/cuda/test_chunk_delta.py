"""A chunk's gated delta net on an imitated GPU against its twin in float64."""

import numpy as np
import pytest

from flashmoe.errors import InputError
from flashmoe.kernels import mixers
from flashmoe.kernels.cuda.chunk_delta import ChunkDeltaNet
from flashmoe.kernels.cuda.delta import DeltaState, delta_state
from flashmoe.kernels.mixers import DeltaWeights
from flashmoe.shape import RecurrentShape
from tests.kernels.test_decode import F32, F64, near, normal
from tests.tolerances import MIXER

SHAPES = {
    "two a key head": RecurrentShape(2, 4, 128, 64, 4),
    "uneven": RecurrentShape(1, 3, 32, 96, 2),
    "no memory in the convolution": RecurrentShape(2, 2, 64, 32, 1),
}


def given(shape, count):
    """qkv, z, b and a of so many tokens, and the layer's weights."""
    heads = shape.value_heads
    widths = shape.conv_channels, heads * shape.value_dim, heads, heads
    inputs = [normal(n, count, width) for n, width in enumerate(widths)]
    decay = -np.exp(normal(5, heads) / 2)
    conv = normal(4, shape.conv_channels, shape.conv_kernel) / 2
    return inputs, DeltaWeights(
        shape, 1e-6, conv, decay, normal(6, heads), normal(7, shape.value_dim)
    )


def before(shape):
    """A state that something has left."""
    delta = normal(8, shape.value_heads, shape.key_dim, shape.value_dim) / 8
    return delta, normal(9, shape.conv_kernel - 1, shape.conv_channels)


def passed(device, inputs, weights, start, cuts):
    """All tokens, the first of which stands at ``start``, in chunks that end at ``cuts``."""
    part, shape = ChunkDeltaNet(device, weights), weights.shape
    state = DeltaState(*(device.upload(array) for array in before(shape)))
    results, first = [], 0
    for end in cuts:
        chunk = tuple(device.upload(a[first:end]) for a in inputs)
        after = delta_state(device, shape)
        y = device.empty((end - first, shape.value_heads * shape.value_dim), F32)
        part(chunk, start + first, state, after, y)
        results.append(device.download(y))
        state, first = after, end
    return np.concatenate(results), device.download(state.delta), device.download(state.conv)


@pytest.mark.parametrize("start, count", ((0, 1), (0, 70), (61, 2), (61, 70), (100, 131)))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_chunk(device, shape, start, count):
    inputs, weights = given(shape, count)
    y, delta, conv = passed(device, inputs, weights, start, (count,))
    wide = [array.astype(F64) for array in inputs]
    state = tuple(array.astype(F64) for array in before(shape))
    wanted, (wanted_delta, wanted_conv) = mixers.gated_delta(*wide, weights, state, start=start)
    assert near(y, wanted, MIXER)
    assert near(delta, wanted_delta, MIXER)
    np.testing.assert_array_equal(conv, wanted_conv)


def test_neither_cuts_at_blocks_nor_what_follows_change_a_bit(device):
    shape = SHAPES["two a key head"]
    inputs, weights = given(shape, 150)
    whole = passed(device, inputs, weights, 30, (150,))
    for cuts in ((34, 150), (98, 150), (34, 98, 150)):
        for got, wanted in zip(passed(device, inputs, weights, 30, cuts), whole, strict=True):
            np.testing.assert_array_equal(got, wanted)
    for array in inputs:
        array[110] = np.nan
    y, delta, _ = passed(device, inputs, weights, 30, (150,))
    np.testing.assert_array_equal(y[:110], whole[0][:110])
    assert np.isnan(y[110:]).all() and np.isnan(delta).all()


def test_the_old_state_is_left_as_it_was(device):
    shape = SHAPES["uneven"]
    inputs, weights = given(shape, 5)
    state = DeltaState(*(device.upload(array) for array in before(shape)))
    y = device.empty((5, 288), F32)
    chunk = tuple(device.upload(array) for array in inputs)
    ChunkDeltaNet(device, weights)(chunk, 0, state, delta_state(device, shape), y)
    for got, wanted in zip((state.delta, state.conv), before(shape), strict=True):
        np.testing.assert_array_equal(device.download(got), wanted)
    with pytest.raises(ValueError, match="overwrite"):
        ChunkDeltaNet(device, weights)(chunk, 0, state, state, y)


def test_heads_that_the_kernels_do_not_take_are_refused(device):
    shape = RecurrentShape(1, 1, 48, 32, 4)
    with pytest.raises(InputError, match="key_dim 48"):
        ChunkDeltaNet(device, given(shape, 1)[1])
