"""From a hidden state on a GPU to logits in the host's memory.

Owns the launches of the final norm and the output matrix, and where the logits come to.
"""

from __future__ import annotations

import numpy as np

from flashmoe.kernels.cuda.decode import NormedProjection
from flashmoe.kernels.cuda.descriptors import Resident
from flashmoe.kernels.cuda.device import Device, DeviceArray
from flashmoe.model.gpu.weights import Weights
from flashmoe.model.head import NORM, OUTPUT
from flashmoe.quant import Array
from flashmoe.shape import ModelShape


class Head:
    """Of a model whose output matrix is its own, or the ``embedding``."""

    def __init__(
        self, device: Device, shape: ModelShape, weights: Weights, embedding: Resident
    ) -> None:
        vocabulary, hidden = shape.vocabulary, shape.hidden
        matrix = embedding if shape.tied_head else weights.matrix(OUTPUT, vocabulary, hidden)
        factors = weights.norm(NORM, hidden, shape.norm_offset)
        self._device = device
        self._matrix = NormedProjection(device, [matrix], factors, shape.norm_eps)
        self._made = device.zeros((vocabulary,), np.float32)
        self.logits: Array = device.pinned((vocabulary,), np.float32)
        """Of the latest launch that has ended (vocabulary,)."""

    def launch(self, x: DeviceArray) -> None:
        """The logits of a hidden state (hidden,), fetched."""
        self._matrix(x, self._made)
        self._device.fetch(self.logits, self._made)
