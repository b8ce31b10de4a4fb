"""A state taken apart and put together is the same state."""

import numpy as np
import pytest

from flashmoe.model.state import State
from flashmoe.prefix import entry, pieces
from tests.prefix.states import F32, grown, same
from tests.synthetic import DENSE, HYBRID

IDS = [int(i) for i in np.random.default_rng(3).integers(0, 96, 700)]


@pytest.mark.parametrize("shape", [HYBRID, DENSE], ids=["hybrid", "dense"])
@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("length", [64, 256, 300, 700])
def test_apart_and_together_again(shape, kv, length):
    ids = IDS[:length]
    state = grown(ids, 1024, shape, kv)
    count = pieces.whole_blocks(state, length)
    assert count == length // 256
    other = State(shape, 1024, F32, kv)
    pieces.place_state(other, length, pieces.state_arrays(state, ids))
    for index in range(count):
        pieces.place_block(other, index, pieces.block_arrays(state, index))
    assert same(state, other)
    own = entry.layout(entry.Head("state", "m", length), pieces.state_arrays(state, ids))
    assert own.nbytes <= pieces.state_bytes(shape, 1024, 4, kv)
    if count:
        block = entry.layout(entry.Head("block", "m", 256), pieces.block_arrays(state, 0))
        assert block.nbytes <= pieces.block_bytes(shape, 4, kv)


def test_without_attention_there_are_no_blocks():
    from dataclasses import replace

    state = State(replace(HYBRID, mixers=("recurrent",), attention=None), 1024, F32)
    assert pieces.whole_blocks(state, 1000) == 0
    assert pieces.block_arrays(state, 0) == {}


def test_pieces_of_another_model_are_refused():
    arrays = pieces.state_arrays(grown(IDS[:70]), IDS)
    with pytest.raises(ValueError, match="other layers"):
        pieces.place_state(State(DENSE, 1024, F32), 70, arrays)
    for kv in ("bf16", "int8"):
        with pytest.raises(ValueError, match=r"another shape or type|other layers"):
            pieces.place_state(State(HYBRID, 1024, F32, kv), 70, arrays)
    with pytest.raises(ValueError, match=r"2\.keys is of another shape"):
        pieces.place_state(State(HYBRID, 1024, F32), 71, arrays)


def test_a_cleared_state_is_an_empty_one():
    state = grown(IDS[:70])
    state.clear()
    assert same(state, State(HYBRID, 2048, F32))
