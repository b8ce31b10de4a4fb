"""The resident tensors by name, each checked against the shape that the model needs.

Owns the look-up between a store's trunk and the layers. Matrices stay as stored; the few
vectors (norms, decays) are kept as floats of the kernels' dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flashmoe.errors import StoreError
from flashmoe.quant import Array, Expert, Matrix


class Trunk:
    """Named access to the trunk, for layers that know what they need."""

    def __init__(self, tensors: Mapping[str, Matrix], dtype: np.dtype[Any]) -> None:
        self._tensors = tensors
        self.dtype = dtype

    def matrix(self, name: str, rows: int, columns: int) -> Matrix:
        """The matrix ``name`` + ``.weight`` of shape (rows, columns).

        Raises:
            StoreError: missing, or of another shape.
        """
        found = self._tensors.get(f"{name}.weight")
        if found is None:
            raise StoreError(f"the store has no tensor {name}.weight: convert the checkpoint again")
        if found.shape != (rows, columns):
            raise StoreError(
                f"{name}.weight has shape {found.shape}; this model needs {(rows, columns)}"
            )
        return found

    def floats(self, name: str, *shape: int) -> Array:
        """The tensor of exactly this name and shape, as floats.

        Raises:
            StoreError: missing, or of another shape.
        """
        found = self._tensors.get(name)
        if found is None or found.weight.shape != shape:
            what = "is missing" if found is None else f"has shape {found.weight.shape}"
            raise StoreError(f"{name} {what}; this model needs {shape}: convert it again")
        return found.weight.astype(self.dtype)

    def norm(self, name: str, width: int, offset: int) -> Array:
        """The factor that a norm applies: the stored weight plus ``offset`` (0 or 1)."""
        factor: Array = self.floats(f"{name}.weight", width) + self.dtype.type(offset)
        return factor

    def expert(self, name: str, hidden: int, intermediate: int) -> Expert:
        """A resident SwiGLU expert."""
        return Expert(
            self.matrix(f"{name}.gate_proj", intermediate, hidden),
            self.matrix(f"{name}.up_proj", intermediate, hidden),
            self.matrix(f"{name}.down_proj", hidden, intermediate),
        )
