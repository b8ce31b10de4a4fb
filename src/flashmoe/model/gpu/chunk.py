"""One layer's launches for a chunk of a prompt: the same order as for one token (``layer``), with
products on tensor cores, and the host deciding which experts pass.

Owns the order and the memory between the launches, which comes from the device's pool. What has
been computed depends on neither the number of tokens that pass together, if chunks end at multiples
of 64, nor on where the experts lie.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from flashmoe.kernels.cuda import rows
from flashmoe.kernels.cuda.attention import KeyValues
from flashmoe.kernels.cuda.chunk_attention import ChunkAttention
from flashmoe.kernels.cuda.chunk_delta import ChunkDeltaNet
from flashmoe.kernels.cuda.delta import DeltaState
from flashmoe.kernels.cuda.descriptors import Placed
from flashmoe.kernels.cuda.device import Device, DeviceArray
from flashmoe.kernels.cuda.panel_experts import Experts, Meetings, SharedExpert
from flashmoe.kernels.cuda.panels import Products, Rows
from flashmoe.kernels.cuda.rows import RowsNorm
from flashmoe.model.gpu.layer import Slots
from flashmoe.model.gpu.mixing import Mixing
from flashmoe.model.gpu.weights import Weights
from flashmoe.quant import Array
from flashmoe.shape import ModelShape


class ChunkLayer:
    """The weights of one layer, which ``layer.Layer`` has too, and a chunk's launches."""

    def __init__(
        self,
        device: Device,
        shape: ModelShape,
        weights: Weights,
        index: int,
        slots: Slots,
        record: tuple[Placed, ...],
    ) -> None:
        self._device, self._shape = device, shape
        name, hidden, eps = f"layers.{index}", shape.hidden, shape.norm_eps
        self._before, self._after = (
            RowsNorm(device, weights.norm(f"{name}.{of}", hidden, shape.norm_offset), eps)
            for of in ("input_layernorm", "post_attention_layernorm")
        )
        mixing = Mixing(shape, weights, index)
        self._mixer: ChunkAttention | ChunkDeltaNet
        if mixing.attention is not None:
            self._mixer = ChunkAttention(device, mixing.attention)
        else:
            assert mixing.delta is not None
            self._mixer = ChunkDeltaNet(device, mixing.delta)
        self._inward, self._out = Products(device, mixing.inward), Products(device, [mixing.out])
        self._outputs = mixing.out.shape[1]
        experts, mlp = shape.experts, f"{name}.mlp"
        self._router = self._opening = self._shared = None
        if experts.router == "softmax":
            self._router = Products(device, [weights.matrix(f"{mlp}.gate", experts.count, hidden)])
        if experts.shared_intermediate:
            gate = weights.matrix(f"{mlp}.shared_expert_gate", 1, hidden)
            self._opening = Products(device, [gate])
            width = experts.shared_intermediate
            self._shared = SharedExpert(
                device, *weights.expert(f"{mlp}.shared_expert", hidden, width)
            )
        self._experts = Experts(device, slots.address, slots.slot_bytes, record)

    def mix(
        self, x: DeviceArray, state: KeyValues | tuple[DeltaState, DeltaState], start: int
    ) -> None:
        """``x`` (T, hidden) moves on by the mixer; the first token stands at ``start``."""
        device, count = self._device, len(x)
        normed = Rows(device, self._normed(x, self._before))
        inputs = [self._empty(count, outputs) for outputs in self._inward.outputs]
        self._inward(normed, inputs)
        mixed = self._empty(count, self._outputs)
        if isinstance(self._mixer, ChunkAttention):
            assert isinstance(state, KeyValues)
            q, k, v = inputs
            self._mixer(q, k, v, start, state, mixed)
        else:
            assert isinstance(state, tuple)
            qkv, z, b, a = inputs
            self._mixer((qkv, z, b, a), start, state[0], state[1], mixed)
        self._out(Rows(device, mixed), (x,), x)

    def route(self, x: DeviceArray, ids: Array) -> tuple[Rows, DeviceArray]:
        """What the experts take, and their weights (T, top_k); their numbers come to ``ids`` (T,
        top_k), int32 of pinned memory, once the device has done all this."""
        device, count, experts = self._device, len(x), self._shape.experts
        normed = Rows(device, self._normed(x, self._after))
        if self._router is None:
            ids[...] = np.arange(experts.count)
            return normed, device.upload(np.ones(ids.shape, np.float32))
        logits = self._empty(count, experts.count)
        self._router(normed, (logits,))
        chosen = device.empty(ids.shape, np.int32)
        weights = self._empty(*ids.shape)
        rows.route(device, logits, experts.renormalize, chosen, weights)
        device.fetch(ids, chosen)
        return normed, weights

    def share(self, normed: Rows, x: DeviceArray) -> None:
        """The shared expert's part is added to ``x``."""
        if self._shared is None or self._opening is None:
            return
        opening = self._empty(normed.count, 1)
        self._opening(normed, (opening,))
        self._shared(normed, opening, x)

    def add_experts(
        self,
        normed: Rows,
        ids: Array,
        weights: DeviceArray,
        batches: Iterable[list[tuple[int, int]]],
        x: DeviceArray,
    ) -> None:
        """The chosen experts' part is added to ``x``: ``batches`` of (expert, slot)."""
        meetings: Meetings | None = None
        for batch in batches:  # whose first begins copies, which go on beside the lists
            meetings = meetings or Meetings(self._device, ids)
            self._experts(normed, meetings, weights, batch, x)

    def _normed(self, x: DeviceArray, norm: RowsNorm) -> DeviceArray:
        y = self._empty(*x.shape)
        norm(x, y)
        return y

    def _empty(self, *shape: int) -> DeviceArray:
        return self._device.empty(shape, np.float32)


def token_bytes(shape: ModelShape) -> int:
    """Memory of the device that a token of a chunk takes, the experts' own not counted, at the
    layer that takes most."""
    hidden, heads, widest = shape.hidden, 0, 0
    if shape.recurrent is not None:
        net = shape.recurrent
        heads = net.value_heads
        values = heads * net.value_dim
        # Inputs, the convolution's output, results; two matrices of 64 by 64 a block and head.
        widest = 2 * net.conv_channels + 2 * values + 2 * heads + 2 * 64 * heads
    if shape.attention is not None:
        net_heads = shape.attention.heads * shape.attention.head_dim
        keys = shape.attention.kv_heads * shape.attention.head_dim
        widest = max(widest, net_heads * (3 + shape.attention.gated) + 2 * keys)
    floats = 5 * hidden + widest + shape.experts.count + 3 * shape.experts.shared_intermediate
    planes = 3 * (hidden + widest)  # bytes: 16 bits and their scales
    return 4 * floats + planes + 16 * shape.experts.top_k


def experts_bytes(shape: ModelShape, places: int) -> int:
    """Memory for so many rows of experts together."""
    width = shape.experts.intermediate
    return places * (4 * (2 * width + shape.hidden) + 3 * width)
