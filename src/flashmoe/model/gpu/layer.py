"""One layer's launches for one token: norm and projections, mixer; norm and router, experts.

Owns their order (SPEC 1.3), as ``model.decoder`` and ``model.moe`` have it for the processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmoe.kernels.cuda import decode
from flashmoe.kernels.cuda.attention import Attention, KeyValues
from flashmoe.kernels.cuda.decode import (
    FeedForward,
    Norm,
    NormedProjection,
    Placed,
    Projection,
    Vector,
)
from flashmoe.kernels.cuda.delta import DeltaNet, DeltaState
from flashmoe.kernels.cuda.descriptors import Resident
from flashmoe.kernels.cuda.device import Device, DeviceArray
from flashmoe.model.gpu.mixing import Mixing
from flashmoe.model.gpu.weights import Weights
from flashmoe.quant import Array
from flashmoe.shape import ModelShape


@dataclass(frozen=True, eq=False)
class Rooms:
    """Memory of a token on its way, shared by all layers."""

    x: DeviceArray
    """The residual stream (hidden,)."""
    normed: Vector
    projected: DeviceArray
    mixed: dict[int, Vector]
    """By length: heads of attention and of delta nets may differ."""
    attended: tuple[DeviceArray, DeviceArray] | None
    """Partial sums of attention."""
    logits: DeviceArray
    """The router's, and behind them the shared expert's gate."""
    between: tuple[DeviceArray, DeviceArray]
    """The two halves of the experts."""


@dataclass(frozen=True)
class Slots:
    """Where experts lie: the arena, its address, and bytes of a slot."""

    arena: DeviceArray
    address: int
    slot_bytes: int


class Layer:
    """The weights of one, and its launches."""

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
        before, after = (
            weights.norm(f"{name}.{of}", hidden, shape.norm_offset)
            for of in ("input_layernorm", "post_attention_layernorm")
        )
        mixing = Mixing(shape, weights, index)
        self.mixer: Attention | DeltaNet
        if mixing.attention is not None:
            self.mixer = Attention(device, mixing.attention)
        else:
            assert mixing.delta is not None
            self.mixer = DeltaNet(device, mixing.delta)
        self.inward = NormedProjection(device, mixing.inward, before, eps)
        self.out = Projection(device, [mixing.out])
        experts, mlp = shape.experts, f"{name}.mlp"
        routed = []
        if experts.router == "softmax":
            routed.append(weights.matrix(f"{mlp}.gate", experts.count, hidden))
        shared: tuple[Resident, ...] = ()
        if experts.shared_intermediate:
            routed.append(weights.matrix(f"{mlp}.shared_expert_gate", 1, hidden))
            shared = weights.expert(f"{mlp}.shared_expert", hidden, experts.shared_intermediate)
        self.router: NormedProjection | Norm
        if routed:
            self.router = NormedProjection(device, routed, after, eps)
        else:
            self.router = Norm(device, after, eps)
        self.experts = FeedForward(device, slots.address, slots.slot_bytes, record, shared)
        self.chosen = decode.choice(device, experts.top_k)

    def launch(
        self,
        rooms: Rooms,
        state: KeyValues | tuple[DeltaState, DeltaState],
        inputs: DeviceArray,
        table: DeviceArray,
        letter: Array,
    ) -> None:
        """``rooms.x`` moves on by this layer; ``inputs`` has token, position and step."""
        projected = rooms.projected[: self.inward.outputs]
        self.inward(rooms.x, projected)
        mixed = rooms.mixed[self.mixer.outputs]
        if isinstance(self.mixer, Attention):
            assert isinstance(state, KeyValues)
            assert rooms.attended is not None
            self.mixer(projected, inputs[1:2], state, rooms.attended, mixed)
        else:
            assert isinstance(state, tuple)
            self.mixer(projected, state[0], state[1], mixed)
        self.out(mixed, rooms.x, rooms.x)
        logits, opening = self._route(rooms)
        renormalize = self._shape.experts.renormalize
        decode.route(self._device, logits, renormalize, table, self.chosen, inputs, letter)
        self.experts(rooms.normed, self.chosen, opening, rooms.between, rooms.x, rooms.x)

    def _route(self, rooms: Rooms) -> tuple[DeviceArray | None, DeviceArray | None]:
        """The norm, the router's logits, and the shared expert's; None for what there is not."""
        if isinstance(self.router, Norm):
            self.router(rooms.x, rooms.normed)
            return None, None
        both = rooms.logits[: self.router.outputs]
        self.router(rooms.x, both, rooms.normed)
        count = self._shape.experts.count if self._shape.experts.router == "softmax" else 0
        return both[:count] if count else None, both[count:] if len(both) > count else None


def rooms(device: Device, shape: ModelShape, layers: list[Layer]) -> Rooms:
    """As large as the largest layer wants."""
    lengths = {layer.mixer.outputs for layer in layers}
    return Rooms(
        device.zeros((shape.hidden,), np.float32),
        decode.vector(device, shape.hidden),
        device.zeros((max(layer.inward.outputs for layer in layers),), np.float32),
        {length: decode.vector(device, length) for length in lengths},
        next((layer.mixer.room() for layer in layers if isinstance(layer.mixer, Attention)), None),
        device.zeros((shape.experts.count + 1,), np.float32),
        layers[0].experts.room(shape.experts.top_k),
    )
