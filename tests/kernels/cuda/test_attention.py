"""One token's attention against its twin in float64, on the imitated machine."""

import numpy as np
import pytest

from flashmoe.errors import InputError
from flashmoe.kernels import mixers, reference
from flashmoe.kernels.cuda import decode
from flashmoe.kernels.cuda.attention import ATTENTION, HELD, Attention, key_values
from flashmoe.kernels.kv import KeyValues
from flashmoe.options import KV_KINDS
from flashmoe.shape import AttentionShape
from tests.kernels.cuda.emulated import EmulatedDevice
from tests.kernels.cuda.test_decode import fixed
from tests.kernels.test_decode import F32, attention_case, exact, near, normal
from tests.tolerances import CODE, HALF, MIXER, NORM

SHAPES = {
    "published": AttentionShape(16, 2, 256, 64, 1e7, gated=True, qk_norm=True),
    "sixteen a kv head": AttentionShape(16, 1, 256, 64, 1e7, gated=True, qk_norm=True),
    "one a kv head": AttentionShape(3, 3, 64, 64, 1e4, gated=False, qk_norm=False),
    "two a kv head": AttentionShape(4, 2, 128, 128, 1e6, gated=False, qk_norm=True),
    "twelve a kv head": AttentionShape(12, 1, 128, 6, 1e4, gated=True, qk_norm=False),
    "nine a kv head": AttentionShape(9, 1, 64, 32, 1e4, gated=False, qk_norm=True),
}


@pytest.fixture
def device():
    return EmulatedDevice()


def begun(device, shape, kind, length, context):
    """The same keys and values on the device and in the host's memory."""
    extent = (shape.kv_heads, context, shape.head_dim)
    held, host = key_values(device, kind, extent), KeyValues(kind, extent, F32)
    host.extend(*(normal(n, length, shape.kv_heads, shape.head_dim) for n in (6, 7)))
    for name, array in host.arrays().items():
        held.arrays[name].view(array.dtype)[:, :length] = array
    return held, host


def token(shape, step):
    """q, k and v."""
    queries = shape.heads * shape.head_dim * (2 if shape.gated else 1)
    widths = queries, shape.kv_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return [normal(20 + 3 * step + n, 1, width) for n, width in enumerate(widths)]


def appended(held, host):
    """The host's takes over what the device has appended."""
    at = host.length
    host.length += 1
    for name, array in host.arrays().items():
        array[:, at] = held.arrays[name].view(array.dtype)[:, at]


def attend(device, part, inputs, length, held):
    y = decode.vector(device, part.outputs)
    position = device.upload(np.array([length], np.int32))
    x = device.upload(np.concatenate(inputs, axis=1)[0])
    part(x, position, held, part.room(), y)
    return y


@pytest.mark.parametrize("kind", KV_KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("length", (0, 1, 63, 255, 256, 700))
def test_tokens_one_after_the_other(device, shape, length, kind):
    weights = attention_case(shape)[-1]
    part = Attention(device, weights)
    held, host = begun(device, shape, kind, length, 704)
    for step in range(2):
        inputs = token(shape, step)
        before = {name: np.array(array) for name, array in held.arrays.items()}
        y = attend(device, part, inputs, length + step, held)
        appended(held, host)
        wanted = exact(inputs[0], weights, host)
        assert near(y.floats, wanted[0], MIXER)
        np.testing.assert_array_equal(y.fixed, fixed(device, np.array(y.floats)).fixed)
        for name, array in held.arrays.items():  # nothing else is written
            for part_of in (slice(length + step), slice(length + step + 1, None)):
                np.testing.assert_array_equal(array[:, part_of], before[name][:, part_of])


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("f32", MIXER), ("f16", HALF / 8), ("bf16", HALF), ("int8", CODE)]
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_token_is_held_as_the_reference_holds_it(device, shape, kind, tolerance):
    weights, inputs = attention_case(shape)[-1], token(shape, 0)
    inputs[2][0, : shape.head_dim] *= 1e5  # beyond halves
    held, twin = begun(device, shape, kind, 40, 41)
    _, wide = begun(device, shape, "f32", 40, 41)
    attend(device, Attention(device, weights), inputs, 40, held)
    mixers.attend(*inputs, weights, wide)
    with np.errstate(invalid="ignore"):
        mixers.attend(*inputs, weights, twin)
    for name in twin.arrays():
        if name.startswith("value"):
            got = held.arrays[name].view(twin.whole[name].dtype)[:, 40]
            np.testing.assert_array_equal(got, twin.whole[name][:, 40])
    keys = held.arrays["keys"].view(twin.whole["keys"].dtype)[:, 40].astype(np.float64)
    if kind == "int8":
        keys *= held.arrays["key_scales"][:, 40, None]
    for head, wanted in zip(keys, wide.whole["keys"][:, 40], strict=True):
        assert near(head, wanted.astype(np.float64), tolerance)


def test_rotation_far_along(device):
    """Angles are float32 products, as large as a context is long, reduced without loss."""
    shape = AttentionShape(1, 1, 64, 64, 1e4, gated=False, qk_norm=False)
    part = Attention(device, attention_case(shape)[-1])
    held = key_values(device, "f32", (1, 263, 64))
    frequencies = part._arrays["frequencies"]
    np.testing.assert_array_equal(frequencies, reference.frequencies(64, 1e4, F32))
    frequencies *= 1000  # as if each position were a thousand
    for position in (66, 105, 262):
        inputs = token(shape, position)
        attend(device, part, inputs, position, held)
        angle = (np.float32(position) * frequencies).astype(np.float64)
        first, second = inputs[1].reshape(2, 32)
        cos, sin = np.cos(angle), np.sin(angle)
        wanted = np.concatenate([first * cos - second * sin, second * cos + first * sin])
        assert np.abs(held.arrays["keys"][0, position] - wanted).max() <= NORM


@pytest.mark.parametrize("kind", KV_KINDS)
@pytest.mark.parametrize("wrong", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("which", range(3))
def test_what_is_not_finite_shows(device, kind, wrong, which):
    shape = SHAPES["two a kv head"]
    inputs = token(shape, 0)
    inputs[which][0, 5] = wrong
    held, _ = begun(device, shape, kind, 70, 71)
    y = attend(device, Attention(device, attention_case(shape)[-1]), inputs, 70, held)
    rows = y.floats.reshape(4, 128)
    touched = slice(0, 1) if which == 0 else slice(0, 2)
    assert not np.isfinite(rows[touched]).all(axis=1).any()
    assert np.isfinite(rows[touched.stop :]).all()


def test_zeros_in_eight_bits(device):
    shape = SHAPES["one a kv head"]
    held, _ = begun(device, shape, "int8", 3, 4)
    inputs = [np.zeros_like(a) for a in token(shape, 0)]
    y = attend(device, Attention(device, attention_case(shape)[-1]), inputs, 3, held)
    assert np.isfinite(y.floats).all()
    for name, array in held.arrays.items():
        assert not array[:, 3].any(), name


def test_sums_depend_on_the_length_alone(device):
    """Neither on the context's length nor on what lies behind the last token."""
    shape = SHAPES["published"]
    part, inputs = Attention(device, attention_case(shape)[-1]), token(shape, 0)
    results = []
    for context in (301, 1000):
        held, _ = begun(device, shape, "f16", 300, context)
        held.arrays["keys"][:, 301:] = held.arrays["values"][:, 301:] = np.nan
        results.append(np.array(attend(device, part, inputs, 300, held).floats))
    np.testing.assert_array_equal(*results)
    assert device.launches == ["attend_256", "merge"] * 2


def test_more_tiles_than_blocks(device, monkeypatch):
    monkeypatch.setattr("flashmoe.kernels.cuda.attention.BLOCKS", 6)
    shape = SHAPES["published"]
    weights, inputs = attention_case(shape)[-1], token(shape, 0)
    for length in (191, 192, 500, 900):
        held, host = begun(device, shape, "f16", length, length + 1)
        y = attend(device, Attention(device, weights), inputs, length, held)
        appended(held, host)
        assert near(y.floats, exact(inputs[0], weights, host)[0], MIXER)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (AttentionShape(2, 2, 96, 96, 1e4, gated=False, qk_norm=False), "head_dim 96"),
        (AttentionShape(34, 2, 64, 64, 1e4, gated=False, qk_norm=False), "17 query heads"),
    ],
)
def test_heads_that_there_are_no_kernels_for_are_refused(device, shape, reason):
    with pytest.raises(InputError, match=f"{reason}.*--kernels cpu"):
        Attention(device, attention_case(shape)[-1])


def test_what_does_not_fit_is_refused(device):
    shape = SHAPES["two a kv head"]
    part = Attention(device, attention_case(shape)[-1])
    held, inputs = begun(device, shape, "f16", 3, 4)[0], token(shape, 0)
    other = begun(device, SHAPES["one a kv head"], "f16", 3, 4)[0]
    with pytest.raises(ValueError, match="another layer"):
        attend(device, part, inputs, 3, other)
    with pytest.raises(ValueError, match="inputs of shape"):
        attend(device, part, inputs[:2], 3, held)
    x, position = device.zeros((part.inputs,), np.float32), device.zeros((1,), np.int32)
    with pytest.raises(ValueError, match="partial sums"):
        room = part.room()
        part(x, position, held, (room[0][1:], room[1]), decode.vector(device, part.outputs))
    with pytest.raises(ValueError, match="position of shape"):
        part(x, position[:0], held, part.room(), decode.vector(device, part.outputs))


def test_a_form_that_there_is_not_is_refused(device):
    with pytest.raises(InputError, match="'f8': choose one of f32, f16, bf16, int8"):
        key_values(device, "f8", (1, 2, 64))


def test_structures_are_as_long_as_the_sources_think():
    assert (ATTENTION.itemsize, HELD.itemsize) == (48, 40)
