"""States that are a function of their tokens, as a model's are, without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from flashmoe.kernels.kv import KeyValues
from flashmoe.model.state import State
from flashmoe.options import PrefixCache
from flashmoe.prefix.cache import Prefixes, memory_bytes
from flashmoe.shape import ModelShape
from flashmoe.stream import sizes
from tests.synthetic import HYBRID

F32 = np.dtype(np.float32)
MODEL = "0123456789abcdef-f32"


def grown(
    ids: Sequence[int], context: int = 2048, shape: ModelShape = HYBRID, kv: str = "f32"
) -> State:
    """The state after ``ids``: every number in it follows from the tokens before it."""
    state = State(shape, context, F32, kv)
    if not ids:
        return state
    state.position = len(ids)
    token = np.asarray(ids, np.float64)
    rows = np.cumsum(token * np.cos(np.arange(len(ids)))) % 7
    seed = int.from_bytes(hashlib.blake2b(bytes(str(list(ids)), "ascii")).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    for number, layer in enumerate(state.layers):
        if isinstance(layer, KeyValues):
            layer.length = len(ids)
            for place, array in enumerate(layer.whole.values()):
                filled = array[:, : len(ids)]
                filled[...] = (rows + number + place).reshape(-1, *[1] * (array.ndim - 2))
        else:
            layer.delta[...] = rng.random(layer.delta.shape)
            layer.conv[...] = rng.random(layer.conv.shape)
    state.last = rng.random(state.last.shape).astype(F32)
    return state


def same(one: State, other: State) -> bool:
    """Whether two states are alike to the last bit."""
    mine, theirs = one.arrays(), other.arrays()
    return one.position == other.position and all(
        mine[name].tobytes() == theirs[name].tobytes() for name in mine.keys() | theirs.keys()
    )


def opened(options: PrefixCache, shape: ModelShape = HYBRID, kv: str = "f32") -> Prefixes:
    """A cache for :func:`grown` states."""
    return Prefixes(
        options,
        f"{MODEL.partition('-')[0]}-{kv}",
        limit_bytes=memory_bytes(options, shape, 2048, 4, kv),
        state_bytes=sizes.state_bytes(shape, 4),
        token_bytes=sizes.kv_bytes(shape, 1, 4, kv),
        reserve=lambda state, tokens: None,
    )
