"""The gated delta net's kernel against its twin in float64, on the imitated machine."""

from dataclasses import replace

import numpy as np
import pytest

from flashmoe.errors import InputError
from flashmoe.kernels import mixers
from flashmoe.kernels.cuda import decode
from flashmoe.kernels.cuda.delta import DeltaNet, DeltaState, delta_state
from flashmoe.kernels.mixers import DeltaWeights
from flashmoe.shape import RecurrentShape
from tests.kernels.cuda.emulated import EmulatedDevice
from tests.kernels.cuda.test_decode import fixed
from tests.kernels.test_decode import F64, near, normal, widened
from tests.tolerances import MIXER

SHAPES = {
    "published": RecurrentShape(2, 4, 128, 128, 4),
    "one value head a key head": RecurrentShape(3, 3, 64, 32, 3),
    "rows that do not divide": RecurrentShape(1, 3, 224, 96, 2),
    "largest": RecurrentShape(1, 2, 256, 256, 4),
    "no past": RecurrentShape(2, 2, 32, 160, 1),
}


@pytest.fixture
def device():
    return EmulatedDevice()


def weights_of(shape):
    channels, heads = shape.conv_channels, shape.value_heads
    small = normal(1, channels, shape.conv_kernel), -np.exp(normal(2, heads)), normal(3, heads)
    return DeltaWeights(shape, 1e-6, *small, normal(4, shape.value_dim))


def projected(shape, step):
    """qkv, z, b and a of one token."""
    widths = shape.conv_channels, shape.value_heads * shape.value_dim
    heads = shape.value_heads
    return [*(normal(5 + 4 * step, 1, n) for n in (*widths, heads)), normal(8, 1, heads) * 30]


def poisoned(device, shape):
    """A state that holds anything."""
    empty = delta_state(device, shape)
    return DeltaState(*(device.empty(a.shape, a.dtype) for a in (empty.delta, empty.conv)))


def begun(device, shape):
    """A state as some tokens have left it."""
    empty = delta_state(device, shape)
    assert not empty.delta.any() and not empty.conv.any()
    return DeltaState(*(device.upload(normal(9, *a.shape)) for a in (empty.delta, empty.conv)))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_tokens_one_after_the_other(device, shape):
    weights = weights_of(shape)
    net = DeltaNet(device, weights)
    state, after = begun(device, shape), poisoned(device, shape)
    wide = tuple(a.astype(F64) for a in (state.delta, state.conv))
    for step in range(3):
        inputs = projected(shape, step)
        y = decode.vector(device, net.outputs)
        kept = [a.copy() for a in (state.delta, state.conv)]
        net(device.upload(np.concatenate(inputs, axis=1)[0]), state, after, y)
        for old, before in zip((state.delta, state.conv), kept, strict=True):
            np.testing.assert_array_equal(old, before)
        wanted, wide = mixers.gated_delta(*(a.astype(F64) for a in inputs), widened(weights), wide)
        assert near(y.floats, wanted[0], MIXER)
        np.testing.assert_array_equal(y.fixed, fixed(device, np.array(y.floats)).fixed)
        assert near(after.delta, wide[0], MIXER)
        np.testing.assert_array_equal(after.conv, wide[1].astype(np.float32))
        state, after = after, state
    assert device.launches.count("gated_delta") == 3


def test_gates_at_their_ends_and_what_is_not_finite(device):
    shape = SHAPES["one value head a key head"]
    net = DeltaNet(device, weights_of(shape))
    for value in (1e4, -1e4, np.nan):
        qkv, z, b, a = projected(shape, 0)
        b[:], a[:] = (0, 0) if np.isnan(value) else (value, value)
        a[0, 1] = value
        state, after = begun(device, shape), poisoned(device, shape)
        y = decode.vector(device, net.outputs)
        net(device.upload(np.concatenate([qkv, z, b, a], axis=1)[0]), state, after, y)
        rows = y.floats.reshape(3, 32)
        assert np.isfinite(rows[::2]).all() and np.isfinite(after.delta[::2]).all()
        shows = np.isnan if np.isnan(value) else np.isfinite
        assert shows(rows[1]).all() and shows(after.delta[1]).all()


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (RecurrentShape(1, 1, 48, 64, 4), "key_dim 48"),
        (RecurrentShape(1, 1, 64, 512, 4), "value_dim 512"),
        (RecurrentShape(1, 1, 64, 64, 5), "5 taps"),
    ],
)
def test_sizes_that_the_kernel_does_not_take_are_refused(device, shape, reason):
    with pytest.raises(InputError, match=f"{reason}.*--kernels cpu"):
        DeltaNet(device, weights_of(shape))


def test_what_does_not_fit_is_refused(device):
    shape = SHAPES["published"]
    net = DeltaNet(device, weights_of(shape))
    state, after = begun(device, shape), poisoned(device, shape)
    x, y = device.zeros((net.inputs,), np.float32), decode.vector(device, net.outputs)
    for own in ("delta", "conv"):
        with pytest.raises(ValueError, match="overwrite"):
            net(x, state, replace(after, **{own: getattr(state, own)}), y)
    with pytest.raises(ValueError, match="inputs of shape"):
        net(x[1:], state, after, y)
    with pytest.raises(ValueError, match="results of shape"):
        net(x, state, after, decode.vector(device, net.outputs + 32))
    with pytest.raises(ValueError, match="convolution"):
        net(x, state, replace(after, conv=after.conv[1:]), y)
