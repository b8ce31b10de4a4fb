"""Keys and values of one attention layer, in the form in which they are held.

Owns the arrays, the forms (``Budget.kv``) and what they mean. ``f32`` keeps numbers as they are, in
the dtype of the activations. ``f16`` rounds each to float16, where what is too large becomes
infinity, and ``bf16`` to bfloat16. ``int8`` keeps a float32 scale a
token and head, ``max |x| / 127``, and whole numbers ``round(x / scale)``; a row that is not finite
has the scale NaN, so that it shows. All three are lossy.

Room for the whole planned context is reserved at once, which costs memory only as it is filled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from flashmoe.arena import arena
from flashmoe.quant import Array

FORMS: dict[str, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}
"""What the arrays of each form consist of; ``f32`` is the activations' own dtype."""


def row_bytes(kind: str, width: int, float_bytes: int) -> int:
    """Bytes of one head's key, or value, of one token."""
    sizes = {"f32": width * float_bytes, "f16": width * 2, "bf16": width * 2, "int8": width + 4}
    return sizes[kind]


@dataclass(frozen=True)
class Rows:
    """Keys or values as held, (kv_heads, S, head_dim); ``rows[head, tokens]`` are floats."""

    codes: Array
    scales: Array | None
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """(kv_heads, S, head_dim)."""
        return self.codes.shape

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, place: int | tuple[int, slice]) -> Array:
        floats: Array = self.codes[place].astype(self.dtype, copy=False)
        return floats if self.scales is None else floats * self.scales[place][:, None]


Held: TypeAlias = Array | Rows


class KeyValues:
    """Both of one layer, (kv_heads, context, head_dim) each, filled to ``length`` tokens."""

    def __init__(self, kind: str, extent: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
        self.kind = kind
        self.dtype = dtype
        self.length = 0
        names = ("keys", "values")
        self.whole = {name: _reserved(extent, FORMS.get(kind, dtype)) for name in names}
        """Every array, for the whole context."""
        if kind == "int8":
            scale = np.dtype(np.float32)
            self.whole |= {f"{name[:-1]}_scales": _reserved(extent[:2], scale) for name in names}

    def extend(self, keys: Array, values: Array) -> tuple[Held, Held]:
        """Append (T, kv_heads, head_dim) each; returns all so far, (kv_heads, S, head_dim)."""
        span = slice(self.length, self.length + len(keys))
        for name, given in (("keys", keys), ("values", values)):
            rows = given.swapaxes(0, 1)
            if self.kind == "int8":
                codes, scales = quantized(rows)
                self.whole[name][:, span] = codes
                self.whole[f"{name[:-1]}_scales"][:, span] = scales
            else:
                with np.errstate(over="ignore"):  # to infinity
                    self.whole[name][:, span] = rows
        self.length = span.stop
        return self._rows("keys"), self._rows("values")

    def _rows(self, name: str) -> Held:
        filled = self.arrays()
        if self.kind == "f32":
            return filled[name]
        return Rows(filled[name], filled.get(f"{name[:-1]}_scales"), self.dtype)

    def arrays(self) -> dict[str, Array]:
        """What a snapshot keeps: views of the filled part."""
        return {name: array[:, : self.length] for name, array in self.whole.items()}

    def assign(self, name: str, array: Array) -> None:
        """Take over one of the arrays that :meth:`arrays` gave."""
        self.length = array.shape[1]
        self.whole[name][:, : self.length] = array


def _reserved(extent: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array that takes memory as it is filled, a large page at a time, from a page border on:
    so ``stream.sizes`` can tell how much."""
    nbytes = int(np.prod(extent)) * dtype.itemsize
    return np.frombuffer(arena(nbytes), dtype).reshape(extent)


def quantized(x: Array) -> tuple[Array, Array]:
    """Codes (..., head_dim) int8 and scales (...) float32 of rows (..., head_dim)."""
    most = np.abs(x).max(axis=-1).astype(np.float32)
    finite = np.isfinite(most)
    scales = np.where(finite, most / np.float32(127), np.float32(np.nan))
    usable = finite & (scales > 0)
    units = np.where(usable, scales, np.float32(1))[..., None]
    steps = np.where(usable[..., None], np.rint(np.where(usable[..., None], x, 0) / units), 0)
    return np.clip(steps, -127, 127).astype(np.int8), scales
