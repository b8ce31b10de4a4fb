"""Full attention: grouped-query, gated or plain, with or without query and key norms.

Owns the projections and their order (SPEC 1.3); the arithmetic is the kernels'.
"""

from __future__ import annotations

from flashmoe.kernels import Kernels
from flashmoe.kernels.reference import sigmoid
from flashmoe.model.state import AttentionState
from flashmoe.model.trunk import Trunk
from flashmoe.quant import Array
from flashmoe.shape import ModelShape


class Attention:
    """The mixer of one layer."""

    def __init__(self, shape: ModelShape, trunk: Trunk, name: str, kernels: Kernels) -> None:
        assert shape.attention is not None
        self.shape = shape.attention
        self.eps = shape.norm_eps
        self.kernels = kernels
        heads, kv_heads, width = self.shape.heads, self.shape.kv_heads, self.shape.head_dim
        query_rows = heads * width * (2 if self.shape.gated else 1)
        self.q_proj = trunk.matrix(f"{name}.q_proj", query_rows, shape.hidden)
        self.k_proj = trunk.matrix(f"{name}.k_proj", kv_heads * width, shape.hidden)
        self.v_proj = trunk.matrix(f"{name}.v_proj", kv_heads * width, shape.hidden)
        self.o_proj = trunk.matrix(f"{name}.o_proj", shape.hidden, heads * width)
        if self.shape.qk_norm:
            self.q_norm = trunk.norm(f"{name}.q_norm", width, shape.norm_offset)
            self.k_norm = trunk.norm(f"{name}.k_norm", width, shape.norm_offset)

    def forward(self, x: Array, state: AttentionState) -> Array:
        """(T, hidden) to (T, hidden); appends the T tokens to ``state``."""
        kernels, width = self.kernels, self.shape.head_dim
        start = state.length
        q = kernels.matmul(x, self.q_proj).reshape(len(x), self.shape.heads, -1)
        k = kernels.matmul(x, self.k_proj).reshape(len(x), self.shape.kv_heads, width)
        v = kernels.matmul(x, self.v_proj).reshape(len(x), self.shape.kv_heads, width)
        q, gate = q[..., :width], q[..., width:]  # a head's queries, then its gate
        if self.shape.qk_norm:
            q = kernels.rms_norm(q, self.q_norm, self.eps)
            k = kernels.rms_norm(k, self.k_norm, self.eps)
        rope = (start, self.shape.rope_dims, self.shape.rope_theta)
        q, k = kernels.rotary(q, *rope), kernels.rotary(k, *rope)
        y = kernels.attention(q, *state.extend(k, v))
        if self.shape.gated:
            y = y * sigmoid(gate)
        return kernels.matmul(y.reshape(len(x), -1), self.o_proj)
