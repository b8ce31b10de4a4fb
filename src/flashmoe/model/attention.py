"""Full attention: grouped-query, gated or plain, with or without query and key norms.

Owns the projections and their order (SPEC 1.3); the arithmetic is the kernels'.
"""

from __future__ import annotations

from flashmoe.kernels import Kernels
from flashmoe.kernels.kv import KeyValues
from flashmoe.kernels.mixers import AttentionWeights, Block
from flashmoe.model.trunk import Trunk
from flashmoe.quant import Array
from flashmoe.shape import ModelShape


class Attention:
    """The mixer of one layer."""

    def __init__(
        self, shape: ModelShape, trunk: Trunk, name: str, norm: Array, kernels: Kernels
    ) -> None:
        assert shape.attention is not None
        self.shape = shape.attention
        self.kernels = kernels
        heads, kv_heads, width = self.shape.heads, self.shape.kv_heads, self.shape.head_dim
        query_rows = heads * width * (2 if self.shape.gated else 1)
        q_proj = trunk.matrix(f"{name}.q_proj", query_rows, shape.hidden)
        k_proj = trunk.matrix(f"{name}.k_proj", kv_heads * width, shape.hidden)
        v_proj = trunk.matrix(f"{name}.v_proj", kv_heads * width, shape.hidden)
        o_proj = trunk.matrix(f"{name}.o_proj", shape.hidden, heads * width)
        self.block = Block(norm, shape.norm_eps, (q_proj, k_proj, v_proj), o_proj)
        q_norm = k_norm = None
        if self.shape.qk_norm:
            q_norm = trunk.norm(f"{name}.q_norm", width, shape.norm_offset)
            k_norm = trunk.norm(f"{name}.k_norm", width, shape.norm_offset)
        self.weights = AttentionWeights(self.shape, shape.norm_eps, q_norm, k_norm)

    def forward(self, x: Array, state: KeyValues) -> Array:
        """``x + attention(norm(x))``, (T, hidden); appends the T tokens to ``state``."""
        return self.kernels.attention_block(x, self.block, self.weights, state, self.kernels)
