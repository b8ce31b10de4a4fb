"""Gated delta net: a recurrent mixer whose state does not grow with the context.

Owns the projections and their order (SPEC 1.3); the delta rule itself is the kernels'.
Source: Yang et al., Gated Delta Networks, arXiv 2412.06464.
"""

from __future__ import annotations

import numpy as np

from flashmoe.kernels import Kernels
from flashmoe.kernels.mixers import Block, DeltaWeights
from flashmoe.model.state import RecurrentState
from flashmoe.model.trunk import Trunk
from flashmoe.quant import Array
from flashmoe.shape import ModelShape


class GatedDeltaNet:
    """The mixer of one layer."""

    def __init__(
        self, shape: ModelShape, trunk: Trunk, name: str, norm: Array, kernels: Kernels
    ) -> None:
        assert shape.recurrent is not None
        self.shape = shape.recurrent
        self.kernels = kernels
        heads, channels = self.shape.value_heads, self.shape.conv_channels
        values = heads * self.shape.value_dim
        inputs = (
            trunk.matrix(f"{name}.in_proj_qkv", channels, shape.hidden),
            trunk.matrix(f"{name}.in_proj_z", values, shape.hidden),
            trunk.matrix(f"{name}.in_proj_b", heads, shape.hidden),
            trunk.matrix(f"{name}.in_proj_a", heads, shape.hidden),
        )
        out = trunk.matrix(f"{name}.out_proj", shape.hidden, values)
        self.block = Block(norm, shape.norm_eps, inputs, out)
        self.weights = DeltaWeights(
            self.shape,
            shape.norm_eps,
            conv=trunk.floats(f"{name}.conv1d.weight", channels, self.shape.conv_kernel),
            decay=-np.exp(trunk.floats(f"{name}.A_log", heads)),
            dt_bias=trunk.floats(f"{name}.dt_bias", heads),
            norm=trunk.norm(f"{name}.norm", self.shape.value_dim, 0),  # never 1 + w
        )

    def forward(self, x: Array, state: RecurrentState, position: int) -> Array:
        """``x + gated_delta(norm(x))``, (T, hidden); moves ``state`` on by T tokens.

        The first of them stands at ``position``.
        """
        before, room = (state.delta, state.conv), state.room()
        y, after = self.kernels.delta_block(
            x, self.block, self.weights, before, room, self.kernels, position
        )
        state.replace(*after)
        return y
