"""A mixer with its norm, projections and residual: one call gives what the kernels give apart."""

import numpy as np
import pytest

from flashmoe import kernels
from flashmoe.kernels import mixers
from flashmoe.kernels.mixers import Block
from flashmoe.quant import Affine, Plain
from tests.kernels.test_cpu import stored
from tests.kernels.test_decode import (
    ATTENTION_SHAPES,
    DELTA_SHAPES,
    attention_case,
    delta_case,
    history,
    near,
    normal,
)
from tests.tolerances import MIXER

HIDDEN = 192


def a_block(widths, mixed):
    """Projections of several formats."""
    rng = np.random.default_rng(21)
    forms = (Affine(4, 64), Affine(8, 32), Plain("BF16"), Plain("F32"))
    inputs = [stored(rng, form, width, HIDDEN) for width, form in zip(widths, forms, strict=False)]
    return Block(normal(1, HIDDEN), 1e-6, tuple(inputs), stored(rng, Plain("F16"), HIDDEN, mixed))


def delta_of(shape):
    _, weights, state = delta_case(shape)
    values = shape.value_heads * shape.value_dim
    widths = (shape.conv_channels, values, shape.value_heads, shape.value_heads)
    return a_block(widths, values), weights, state


def attention_of(shape):
    weights = attention_case(shape)[3]
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return a_block((queries * (1 + shape.gated), keys, keys), queries), weights


@pytest.mark.parametrize("tokens", (1, 3))
@pytest.mark.parametrize("shape", DELTA_SHAPES.values(), ids=DELTA_SHAPES)
def test_delta_block(shape, tokens):
    block, weights, state = delta_of(shape)
    x, table = normal(2, tokens, HIDDEN), kernels.choose("cpu", "float32", 1)
    apart = mixers.delta_block(x, block, weights, state, spare(state), table)
    for threads in (1, 2, 3):
        table = kernels.choose("cpu", "float32", threads)
        y, new = table.delta_block(x, block, weights, state, spare(state), table)
        np.testing.assert_array_equal(y, apart[0])
        for one, other in zip(new, apart[1], strict=True):
            np.testing.assert_array_equal(one, other)
    wide = kernels.choose("reference", "float64")
    exact, _ = wide.delta_block(x.astype(np.float64), block, weights, state, spare(state), wide)
    assert near(apart[0] - x, exact - x, 10 * MIXER)


def spare(state):
    return tuple(np.full_like(array, np.nan) for array in state)


@pytest.mark.parametrize("tokens", (1, 3))
@pytest.mark.parametrize("shape", ATTENTION_SHAPES.values(), ids=ATTENTION_SHAPES)
def test_attention_block(shape, tokens):
    block, weights = attention_of(shape)
    x, table = normal(2, tokens, HIDDEN), kernels.choose("cpu", "float32", 1)
    kept = history(shape, "f32", 5)
    apart = mixers.attention_block(x, block, weights, kept, table)
    for threads in (1, 2, 3):
        table, kv = kernels.choose("cpu", "float32", threads), history(shape, "f32", 5)
        y = table.attention_block(x, block, weights, kv, table)
        np.testing.assert_array_equal(y, apart)
        assert kv.length == kept.length == 5 + tokens
        for one, other in zip(kv.arrays().values(), kept.arrays().values(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_block_of_another_mixer_or_width_is_refused():
    table = kernels.choose("cpu", "float32", 1)
    block, weights, state = delta_of(DELTA_SHAPES["narrow"])
    other, of_attention = attention_of(ATTENTION_SHAPES["narrow"])
    x = normal(2, 1, HIDDEN)
    with pytest.raises(ValueError, match="another mixer"):
        table.delta_block(x, other, weights, state, spare(state), table)
    with pytest.raises(ValueError, match="another mixer"):
        kv = history(ATTENTION_SHAPES["narrow"], "f32", 5)
        table.attention_block(x, block, of_attention, kv, table)
    with pytest.raises(ValueError, match="do not fit"):
        table.delta_block(x[:, 1:], block, weights, state, spare(state), table)
