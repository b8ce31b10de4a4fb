"""A layer's mixer as weights: its projections, and what lies between them.

Owns their names and shapes (SPEC 1.3), for one token's launches and a chunk's alike.
"""

from __future__ import annotations

import numpy as np

from flashmoe.kernels.cuda.descriptors import Resident
from flashmoe.kernels.mixers import AttentionWeights, DeltaWeights
from flashmoe.model.gpu.weights import Weights
from flashmoe.quant import Array
from flashmoe.shape import ModelShape


class Mixing:
    """Of layer ``index``: ``inward`` and ``out``, and either ``attention`` or ``delta``."""

    attention: AttentionWeights | None = None
    delta: DeltaWeights | None = None
    inward: list[Resident]
    out: Resident

    def __init__(self, shape: ModelShape, weights: Weights, index: int) -> None:
        if shape.mixers[index] == "attention":
            self._attention(shape, weights, f"layers.{index}.self_attn")
        else:
            self._delta(shape, weights, f"layers.{index}.linear_attn")

    def _attention(self, shape: ModelShape, weights: Weights, name: str) -> None:
        attention, hidden, trunk = shape.attention, shape.hidden, weights.trunk
        assert attention is not None
        heads, kv_heads, width = attention.heads, attention.kv_heads, attention.head_dim
        rows = {
            "q_proj": heads * width * (2 if attention.gated else 1),
            "k_proj": kv_heads * width,
            "v_proj": kv_heads * width,
        }
        self.inward = [weights.matrix(f"{name}.{part}", n, hidden) for part, n in rows.items()]
        self.out = weights.matrix(f"{name}.o_proj", hidden, heads * width)
        norms: list[Array | None] = [None, None]
        if attention.qk_norm:
            offset = shape.norm_offset
            norms = [trunk.norm(f"{name}.{part}", width, offset) for part in ("q_norm", "k_norm")]
        self.attention = AttentionWeights(attention, shape.norm_eps, *norms)

    def _delta(self, shape: ModelShape, weights: Weights, name: str) -> None:
        net, hidden, trunk = shape.recurrent, shape.hidden, weights.trunk
        assert net is not None
        heads, channels, values = (
            net.value_heads,
            net.conv_channels,
            net.value_heads * net.value_dim,
        )
        rows = {
            "in_proj_qkv": channels,
            "in_proj_z": values,
            "in_proj_b": heads,
            "in_proj_a": heads,
        }
        self.inward = [weights.matrix(f"{name}.{part}", n, hidden) for part, n in rows.items()]
        self.out = weights.matrix(f"{name}.out_proj", hidden, values)
        self.delta = DeltaWeights(
            net,
            shape.norm_eps,
            conv=trunk.floats(f"{name}.conv1d.weight", channels, net.conv_kernel),
            decay=-np.exp(trunk.floats(f"{name}.A_log", heads)),
            dt_bias=trunk.floats(f"{name}.dt_bias", heads),
            norm=trunk.norm(f"{name}.norm", net.value_dim, 0),  # never 1 + w
        )
