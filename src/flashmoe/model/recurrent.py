"""Gated delta net: a recurrent mixer whose state does not grow with the context.

Owns the projections and their order (SPEC 1.3); the delta rule itself is the kernels'.
Source: Yang et al., Gated Delta Networks, arXiv 2412.06464.
"""

from __future__ import annotations

import numpy as np

from flashmoe.kernels import Kernels
from flashmoe.kernels.reference import l2_norm, sigmoid, silu
from flashmoe.model.state import RecurrentState
from flashmoe.model.trunk import Trunk
from flashmoe.quant import Array
from flashmoe.shape import ModelShape


class GatedDeltaNet:
    """The mixer of one layer."""

    def __init__(self, shape: ModelShape, trunk: Trunk, name: str, kernels: Kernels) -> None:
        assert shape.recurrent is not None
        self.shape = shape.recurrent
        self.eps = shape.norm_eps
        self.kernels = kernels
        heads, channels = self.shape.value_heads, self.shape.conv_channels
        values = heads * self.shape.value_dim
        self.in_proj_qkv = trunk.matrix(f"{name}.in_proj_qkv", channels, shape.hidden)
        self.in_proj_z = trunk.matrix(f"{name}.in_proj_z", values, shape.hidden)
        self.in_proj_b = trunk.matrix(f"{name}.in_proj_b", heads, shape.hidden)
        self.in_proj_a = trunk.matrix(f"{name}.in_proj_a", heads, shape.hidden)
        self.out_proj = trunk.matrix(f"{name}.out_proj", shape.hidden, values)
        self.conv = trunk.floats(f"{name}.conv1d.weight", channels, self.shape.conv_kernel)
        self.decay = -np.exp(trunk.floats(f"{name}.A_log", heads))
        self.dt_bias = trunk.floats(f"{name}.dt_bias", heads)
        self.norm = trunk.norm(f"{name}.norm", self.shape.value_dim, 0)  # never 1 + w

    def forward(self, x: Array, state: RecurrentState) -> Array:
        """(T, hidden) to (T, hidden); moves ``state`` on by T tokens."""
        kernels, shape = self.kernels, self.shape
        qkv = kernels.matmul(x, self.in_proj_qkv)
        z = kernels.matmul(x, self.in_proj_z).reshape(len(x), shape.value_heads, -1)
        beta = sigmoid(kernels.matmul(x, self.in_proj_b))
        step = np.logaddexp(kernels.matmul(x, self.in_proj_a) + self.dt_bias, x.dtype.type(0))
        mixed, state.conv = kernels.causal_conv(qkv, state.conv, self.conv)
        q, k, v = self._split(mixed)
        o, state.delta = kernels.delta_rule(q, k, v, self.decay * step, beta, state.delta)
        y = kernels.rms_norm(o, self.norm, self.eps) * silu(z)
        return kernels.matmul(y.reshape(len(x), -1), self.out_proj)

    def _split(self, mixed: Array) -> tuple[Array, Array, Array]:
        """Queries and keys, normalised and repeated to value heads, and values: (T, heads, d)."""
        shape = self.shape
        keys = shape.key_heads * shape.key_dim
        q, k, v = np.split(mixed, [keys, 2 * keys], axis=1)
        repeat = shape.value_heads // shape.key_heads  # value head h reads key head h // repeat
        q = l2_norm(q.reshape(len(mixed), shape.key_heads, -1)) * mixed.dtype.type(
            shape.key_dim**-0.5
        )
        k = l2_norm(k.reshape(len(mixed), shape.key_heads, -1))
        v = v.reshape(len(mixed), shape.value_heads, -1)
        return np.repeat(q, repeat, axis=1), np.repeat(k, repeat, axis=1), v
