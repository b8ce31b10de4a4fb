"""The head: final norm and output matrix, hidden states to logits.

Owns these two tensors and nothing of the layers, so that it can be held without them: what a model
has made of a text can be kept as hidden states and asked for its logits later.
"""

from __future__ import annotations

import numpy as np

from flashmoe.kernels import Kernels
from flashmoe.model.trunk import Trunk
from flashmoe.quant import Array
from flashmoe.shape import ModelShape

EMBEDDING, NORM, OUTPUT = "embed_tokens", "norm", "lm_head"


def tensor_names(shape: ModelShape) -> frozenset[str]:
    """The trunk's tensors that a head needs."""
    output = EMBEDDING if shape.tied_head else OUTPUT
    return frozenset({f"{NORM}.weight", f"{output}.weight"})


class Head:
    """``logits = matrix · norm(x)``. Immutable."""

    def __init__(self, shape: ModelShape, trunk: Trunk, kernels: Kernels) -> None:
        output = EMBEDDING if shape.tied_head else OUTPUT
        self._norm = trunk.norm(NORM, shape.hidden, shape.norm_offset)
        self._matrix = trunk.matrix(output, shape.vocabulary, shape.hidden)
        self._eps = shape.norm_eps
        self._kernels = kernels

    def logits(self, x: Array) -> Array:
        """Hidden states (T, hidden) to logits (T, vocabulary)."""
        normed = self._kernels.rms_norm(x, self._norm, self._eps)
        return self._kernels.matmul(np.ascontiguousarray(normed), self._matrix)
