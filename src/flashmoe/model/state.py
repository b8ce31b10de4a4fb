"""What a session remembers of its tokens: keys and values, recurrent and convolution state.

Owns the recurrent arrays, and the snapshot and restore of all. How keys and values are held is
``kernels.kv``'s. They can be cropped, the recurrent state cannot, so a rewind is always a restore
of a snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np

from flashmoe.arena import arena
from flashmoe.errors import ContextError, SessionError
from flashmoe.kernels.kv import KeyValues
from flashmoe.options import Budget
from flashmoe.quant import Array
from flashmoe.shape import ModelShape, RecurrentShape


class RecurrentState:
    """``delta`` (value_heads, key_dim, value_dim); ``conv`` the last inputs, oldest first.

    Two sets of arrays take turns, so that the state before the last pass stays for a rewind. Both
    lie in one arena, each array aligned to 64 bytes: new ones can be written past the caches.
    """

    def __init__(self, shape: RecurrentShape, dtype: np.dtype[Any]) -> None:
        delta = (shape.value_heads, shape.key_dim, shape.value_dim)
        conv = (shape.conv_kernel - 1, shape.conv_channels)
        arrays = aligned_zeros((delta, delta, conv, conv), dtype)
        self._sets = (arrays[0], arrays[2]), (arrays[1], arrays[3])
        self.delta, self.conv = self._sets[0]

    def replace(self, delta: Array, conv: Array) -> None:
        """Move on to another state; that until now stays as it is for a rewind."""
        room = self.room()
        for held, given in zip(room, (delta, conv), strict=True):
            if held is not given:
                held[...] = given
        self.delta, self.conv = room

    def room(self) -> tuple[Array, Array]:
        """Memory for the next state, of shapes as ``delta`` and ``conv``; apart from these."""
        return self._sets[self.delta is self._sets[0][0]]

    def arrays(self) -> dict[str, Array]:
        """What a snapshot keeps."""
        return {"delta": self.delta, "conv": self.conv}

    def assign(self, name: str, array: Array) -> None:
        """Take over a copy of one of the arrays that :meth:`arrays` gave."""
        self.arrays()[name][...] = array


def aligned_zeros(extents: Sequence[tuple[int, ...]], dtype: np.dtype[Any]) -> list[Array]:
    """Arrays of zeros one after the other in an arena, each from a multiple of 64 bytes on."""
    sizes = [int(np.prod(extent)) * dtype.itemsize for extent in extents]
    starts = list(accumulate((size + 63 & -64 for size in sizes), initial=0))
    memory = arena(starts[-1])
    return [
        np.frombuffer(memory[start : start + size], dtype).reshape(extent)
        for start, size, extent in zip(starts, sizes, extents, strict=False)
    ]


LayerState: TypeAlias = KeyValues | RecurrentState
Mark: TypeAlias = tuple[int, Array, list[Any]]


class State:
    """One timeline's memory: a state a layer, and how many tokens have passed.

    ``last`` (1, hidden) is what the final layer gave for the last of them: enough to sample the
    next token without another pass.
    """

    def __init__(
        self,
        shape: ModelShape,
        context_tokens: int,
        dtype: np.dtype[Any],
        kv: str = Budget.kv,
    ) -> None:
        self.shape = shape
        self.kv = kv
        self.context_tokens = context_tokens
        self.dtype = dtype
        self.position = 0
        self.last: Array = np.zeros((1, shape.hidden), dtype)
        self.layers = [self._layer(mixer) for mixer in shape.mixers]

    def _layer(self, mixer: str) -> LayerState:
        if mixer == "attention":
            assert self.shape.attention is not None
            attention = self.shape.attention
            extent = (attention.kv_heads, self.context_tokens, attention.head_dim)
            return KeyValues(self.kv, extent, self.dtype)
        assert self.shape.recurrent is not None
        return RecurrentState(self.shape.recurrent, self.dtype)

    def reserve(self, tokens: int) -> None:
        """Check that so many more tokens fit.

        Raises:
            ContextError: they do not.
        """
        if self.position + tokens > self.context_tokens:
            raise ContextError(
                f"{self.position} tokens and {tokens} more exceed the planned context of "
                f"{self.context_tokens}; plan a longer one with --context, "
                "or shorten the prompt"
            )

    def clear(self) -> None:
        """Forget every token."""
        self.position, self.last = 0, np.zeros_like(self.last)
        for layer in self.layers:
            if isinstance(layer, KeyValues):
                layer.length = 0
            else:
                layer.delta[...] = 0
                layer.conv[...] = 0

    def mark(self) -> Mark:
        """A point to rewind to until the next pass has ended; costs no copy.

        Works because a pass appends keys and values, and writes the new recurrent state into the
        other of two sets of arrays; the pass after it overwrites the first.
        """
        marks: list[Any] = [
            layer.length if isinstance(layer, KeyValues) else (layer.delta, layer.conv)
            for layer in self.layers
        ]
        return self.position, self.last, marks

    def rewind(self, mark: Mark) -> None:
        """Undo a pass that was interrupted, so that the timeline is as it was at the mark."""
        self.position, self.last, marks = mark
        for layer, kept in zip(self.layers, marks, strict=True):
            if isinstance(layer, KeyValues):
                layer.length = kept
            else:
                layer.delta, layer.conv = kept

    def arrays(self) -> dict[str, Array]:
        """Every array under ``layer.name``; views, to be copied or written before going on."""
        arrays = {
            f"{index}.{name}": array
            for index, layer in enumerate(self.layers)
            for name, array in layer.arrays().items()
        }
        return {**arrays, "last": self.last}

    def assign(self, position: int, arrays: Mapping[str, Array]) -> None:
        """Take over what :meth:`arrays` gave, ``position`` tokens into a timeline.

        Raises:
            ContextError: it is longer than this state's planned context.
            SessionError: it belongs to a model of another shape or dtype.
        """
        self.check_length(position)
        self._check(position, arrays)
        for index, layer in enumerate(self.layers):
            for name in layer.arrays():
                layer.assign(name, arrays[f"{index}.{name}"])
        self.last = arrays["last"].copy()
        self.position = position
        self.written()

    def written(self) -> None:
        """The layers' arrays have been written by another than a pass."""

    def check_length(self, position: int) -> None:
        """Check that a timeline of so many tokens fits.

        Raises:
            ContextError: it does not.
        """
        if position > self.context_tokens:
            raise ContextError(
                f"the saved timeline has {position} tokens; the planned context is "
                f"{self.context_tokens}: plan a longer one with --context"
            )

    def _check(self, position: int, arrays: Mapping[str, Array]) -> None:
        own = self.arrays()
        if set(own) != set(arrays):
            raise SessionError("the saved state belongs to a model with other layers")
        for name, array in arrays.items():
            wanted, dtype = own[name].shape, own[name].dtype
            if name.endswith(("keys", "values", "_scales")):
                wanted = (wanted[0], position, *wanted[2:])
            if array.shape != wanted or array.dtype != dtype:
                raise SessionError(
                    f"the saved state has {array.dtype}{array.shape} for layer state {name}; "
                    f"this model needs {dtype}{wanted}"
                )
            del array  # where arrays come from a file, one at a time is in memory
