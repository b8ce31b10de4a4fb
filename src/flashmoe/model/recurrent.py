"""Gated delta net: a recurrent mixer whose state does not grow with the context.

Owns the projections and their order (SPEC 1.3); the delta rule itself is the kernels'.
Source: Yang et al., Gated Delta Networks, arXiv 2412.06464.
"""

from __future__ import annotations

import numpy as np

from flashmoe.kernels import Kernels
from flashmoe.kernels.mixers import DeltaWeights
from flashmoe.model.state import RecurrentState
from flashmoe.model.trunk import Trunk
from flashmoe.quant import Array
from flashmoe.shape import ModelShape


class GatedDeltaNet:
    """The mixer of one layer."""

    def __init__(self, shape: ModelShape, trunk: Trunk, name: str, kernels: Kernels) -> None:
        assert shape.recurrent is not None
        self.shape = shape.recurrent
        self.kernels = kernels
        heads, channels = self.shape.value_heads, self.shape.conv_channels
        values = heads * self.shape.value_dim
        self.in_proj_qkv = trunk.matrix(f"{name}.in_proj_qkv", channels, shape.hidden)
        self.in_proj_z = trunk.matrix(f"{name}.in_proj_z", values, shape.hidden)
        self.in_proj_b = trunk.matrix(f"{name}.in_proj_b", heads, shape.hidden)
        self.in_proj_a = trunk.matrix(f"{name}.in_proj_a", heads, shape.hidden)
        self.out_proj = trunk.matrix(f"{name}.out_proj", shape.hidden, values)
        self.weights = DeltaWeights(
            self.shape,
            shape.norm_eps,
            conv=trunk.floats(f"{name}.conv1d.weight", channels, self.shape.conv_kernel),
            decay=-np.exp(trunk.floats(f"{name}.A_log", heads)),
            dt_bias=trunk.floats(f"{name}.dt_bias", heads),
            norm=trunk.norm(f"{name}.norm", self.shape.value_dim, 0),  # never 1 + w
        )

    def forward(self, x: Array, state: RecurrentState) -> Array:
        """(T, hidden) to (T, hidden); moves ``state`` on by T tokens."""
        inputs = (self.in_proj_qkv, self.in_proj_z, self.in_proj_b, self.in_proj_a)
        qkv, z, b, a = self.kernels.project(x, inputs)
        before = (state.delta, state.conv)
        y, after = self.kernels.gated_delta(qkv, z, b, a, self.weights, before, state.room())
        state.replace(*after)
        return self.kernels.matmul(y, self.out_proj)
