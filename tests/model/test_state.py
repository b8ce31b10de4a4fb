"""What a session remembers: growth, rewind, snapshot, and refusal of what does not fit."""

import numpy as np
import pytest

from flashmoe.errors import ContextError, SessionError
from flashmoe.model.state import RecurrentState, State
from tests.synthetic import DENSE, HYBRID

F32 = np.dtype(np.float32)


def advance(state, tokens):
    """Move every layer on as a pass would."""
    for layer, mixer in zip(state.layers, state.shape.mixers, strict=True):
        if mixer == "attention":
            block = np.full((tokens, 2, state.shape.attention.head_dim), tokens, F32)
            layer.extend(block, -block)
        else:
            layer.delta = layer.delta + tokens
            layer.conv = layer.conv + tokens
    state.position += tokens
    state.last = state.last + tokens


def test_keys_and_values_grow_in_order():
    state = State(DENSE, 8, F32, "f32")
    first = np.arange(3 * 2 * 16, dtype=F32).reshape(3, 2, 16)
    state.layers[0].extend(first, first)
    keys, values = state.layers[0].extend(first[:1] + 1000, first[:1])
    assert keys.shape == (2, 4, 16)
    np.testing.assert_array_equal(keys[:, :3], first.swapaxes(0, 1))
    np.testing.assert_array_equal(keys[:, 3], first[0] + 1000)
    np.testing.assert_array_equal(values[:, 3], first[0])


def test_rewind_undoes_a_pass_that_broke_off():
    state = State(HYBRID, 16, F32)
    advance(state, 3)
    before = {name: array.copy() for name, array in state.arrays().items()}
    mark = state.mark()
    advance(state, 2)
    state.rewind(mark)
    assert state.position == 3
    after = state.arrays()
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name])


def test_assign_takes_copies():
    state, other = State(HYBRID, 16, F32), State(HYBRID, 8, F32)
    advance(state, 3)
    kept = {name: array.copy() for name, array in state.arrays().items()}
    other.assign(3, kept)
    advance(other, 1)
    for name, array in state.arrays().items():
        np.testing.assert_array_equal(array, kept[name])
    assert other.position == 4


def test_what_does_not_fit_is_refused():
    state = State(HYBRID, 16, F32)
    with pytest.raises(ContextError, match="exceed the planned context of 16"):
        state.reserve(17)
    advance(state, 5)
    arrays = state.arrays()
    with pytest.raises(ContextError, match="has 5 tokens"):
        State(HYBRID, 4, F32).assign(5, arrays)
    with pytest.raises(SessionError, match="other layers"):
        State(DENSE, 16, F32).assign(5, arrays)
    with pytest.raises(SessionError, match="float32"):
        State(HYBRID, 16, np.dtype(np.float64)).assign(5, arrays)
    with pytest.raises(SessionError, match="keys"):
        State(HYBRID, 16, F32).assign(4, arrays)


def test_two_sets_of_recurrent_arrays_take_turns():
    layer = RecurrentState(HYBRID.recurrent, F32)
    first, second = (layer.delta, layer.conv), layer.room()
    for array in (*first, *second):
        assert array.ctypes.data % 64 == 0 and not array.any()
    second[0][:], second[1][:] = 1, 2
    layer.replace(*second)
    assert layer.delta is second[0] and layer.room()[0] is first[0]
    layer.replace(layer.delta + 2, layer.conv + 2)  # made elsewhere, as a prompt's pass does
    assert layer.delta is first[0] and (layer.delta == 3).all() and (layer.conv == 4).all()
    assert (second[0] == 1).all() and (second[1] == 2).all()
