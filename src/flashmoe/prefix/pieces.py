"""A timeline's state taken to pieces, and put together again.

Owns what goes where: a *block* is the keys and values of 256 tokens over all attention layers,
whatever follows them; a *state* is what only holds at one position: recurrent and conv state, the
last hidden vector, the tokens, and the keys and values behind the last whole block. Where the
pieces lie, and whether they are whole, is for others.

Invariant: pieces that do not fit the model leave a state that the caller must clear, and raise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flashmoe.kernels.kv import KeyValues
from flashmoe.model.state import State
from flashmoe.quant import Array
from flashmoe.shape import ModelShape
from flashmoe.stream import sizes

BLOCK_TOKENS = 256
"""The unit of attention (docs/DESIGN.md): 5 MiB of the 35B shape at 16 bits."""

HEAD_BYTES = 64 << 10
"""Of a piece, for what is neither state nor a token's own: names of arrays and alignment."""

TOKEN_BYTES = 8
"""A token's share in the piece of a state: its id, and digests of its path."""


def whole_blocks(state: State, position: int) -> int:
    """How many blocks the first ``position`` tokens fill; none where nothing grows with them."""
    return position // BLOCK_TOKENS if "attention" in state.shape.mixers else 0


def block_arrays(state: State, index: int) -> dict[str, Array]:
    """Views of one block, (kv_heads, 256, …) each, by ``layer.name``."""
    return _rows(state, index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS)


def state_arrays(state: State, ids: Sequence[int]) -> dict[str, Array]:
    """Views of all else that the state at its position consists of, and the tokens so far."""
    position = state.position
    arrays = {
        f"{index}.{name}": array
        for index, layer in enumerate(state.layers)
        if not isinstance(layer, KeyValues)
        for name, array in layer.arrays().items()
    }
    tail = _rows(state, position // BLOCK_TOKENS * BLOCK_TOKENS, position)
    tokens = np.asarray(ids[:position], np.dtype("<i4"))
    return {"ids": tokens, **arrays, **tail, "last": state.last}


def place_block(state: State, index: int, arrays: Mapping[str, Array]) -> None:
    """Write a block where it belongs.

    Raises:
        ValueError: it does not fit this model.
    """
    _copy(block_arrays(state, index), arrays)


def place_state(state: State, position: int, arrays: Mapping[str, Array]) -> None:
    """Make ``position`` the state's, with blocks in place up to the last whole one.

    Raises:
        ValueError: it does not fit this model.
    """
    state.position = position
    wanted = state_arrays(state, [0] * position)
    _copy({name: array for name, array in wanted.items() if name != "ids"}, arrays)
    for layer in state.layers:
        if isinstance(layer, KeyValues):
            layer.length = position
    state.written()


def block_bytes(shape: ModelShape, float_bytes: int, kv: str) -> int:
    """The most that a block takes."""
    return sizes.kv_bytes(shape, BLOCK_TOKENS, float_bytes, kv) + HEAD_BYTES


def state_bytes(shape: ModelShape, context_tokens: int, float_bytes: int, kv: str) -> int:
    """The most that a state takes, in a timeline of up to ``context_tokens``."""
    own = sizes.state_bytes(shape, float_bytes) + shape.hidden * float_bytes
    return own + block_bytes(shape, float_bytes, kv) + TOKEN_BYTES * context_tokens


def _rows(state: State, start: int, stop: int) -> dict[str, Array]:
    return {
        f"{index}.{name}": array[:, start:stop]
        for index, layer in enumerate(state.layers)
        if isinstance(layer, KeyValues)
        for name, array in layer.whole.items()
    }


def _copy(own: Mapping[str, Array], given: Mapping[str, Array]) -> None:
    if not own.keys() <= given.keys():
        raise ValueError("it is of a model with other layers")
    for name, array in own.items():
        if (given[name].shape, given[name].dtype) != (array.shape, array.dtype):
            raise ValueError(f"its {name} is of another shape or type than this model's")
        array[...] = given[name]
