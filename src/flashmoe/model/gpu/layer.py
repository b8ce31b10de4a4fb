"""One layer's launches for one token: norm, projections, mixer; norm, router, experts.

Owns their order (SPEC 1.3), as ``model.decoder`` and ``model.moe`` have it for the processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmoe.kernels.cuda import decode
from flashmoe.kernels.cuda.attention import Attention, KeyValues
from flashmoe.kernels.cuda.decode import (
    Choice,
    FeedForward,
    Norm,
    Placed,
    Places,
    Post,
    Projection,
    Vector,
)
from flashmoe.kernels.cuda.delta import DeltaNet, DeltaState
from flashmoe.kernels.cuda.descriptors import Resident
from flashmoe.kernels.cuda.device import Device, DeviceArray
from flashmoe.model.gpu.mixing import Mixing
from flashmoe.model.gpu.weights import Weights
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
    """Where experts lie: the arena, its address, and bytes of a slot; and slots in RAM as the
    device sees them, None where it needs none."""

    arena: DeviceArray
    address: int
    slot_bytes: int
    ram: Places | None


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
        record_bytes: int,
        chosen: Choice,
    ) -> None:
        self._device, self._shape, self._chosen = device, shape, chosen
        self._slots, self._record_bytes = slots, record_bytes
        name, hidden, eps = f"layers.{index}", shape.hidden, shape.norm_eps
        self.before, self.after = (
            Norm(device, weights.norm(f"{name}.{of}", hidden, shape.norm_offset), eps)
            for of in ("input_layernorm", "post_attention_layernorm")
        )
        mixing = Mixing(shape, weights, index)
        self.mixer: Attention | DeltaNet
        if mixing.attention is not None:
            self.mixer = Attention(device, mixing.attention)
        else:
            assert mixing.delta is not None
            self.mixer = DeltaNet(device, mixing.delta)
        self.inward, self.out = Projection(device, mixing.inward), Projection(device, [mixing.out])
        experts, mlp = shape.experts, f"{name}.mlp"
        routed = []
        if experts.router == "softmax":
            routed.append(weights.matrix(f"{mlp}.gate", experts.count, hidden))
        shared: tuple[Resident, ...] = ()
        if experts.shared_intermediate:
            routed.append(weights.matrix(f"{mlp}.shared_expert_gate", 1, hidden))
            shared = weights.expert(f"{mlp}.shared_expert", hidden, experts.shared_intermediate)
        self.router = Projection(device, routed) if routed else None
        self.experts = FeedForward(device, slots.address, slots.slot_bytes, record, shared)

    def launch(
        self,
        rooms: Rooms,
        state: KeyValues | tuple[DeltaState, DeltaState],
        inputs: DeviceArray,
        table: DeviceArray,
        post: Post | None,
    ) -> None:
        """``rooms.x`` moves on by this layer; ``inputs`` has token, position and step. Without
        ``post`` every expert has a slot by the ``table``."""
        self.before(rooms.x, rooms.normed)
        projected = rooms.projected[: self.inward.outputs]
        self.inward(rooms.normed, projected)
        mixed = rooms.mixed[self.mixer.outputs]
        if isinstance(self.mixer, Attention):
            assert isinstance(state, KeyValues)
            assert rooms.attended is not None
            self.mixer(projected, inputs[1:2], state, rooms.attended, mixed)
        else:
            assert isinstance(state, tuple)
            self.mixer(projected, state[0], state[1], mixed)
        self.out(mixed, rooms.x, rooms.x)
        self.after(rooms.x, rooms.normed)
        logits, opening = self._route(rooms)
        renormalize, chosen = self._shape.experts.renormalize, self._chosen
        decode.route(self._device, logits, renormalize, table, chosen, post)
        if post is not None:
            slots = self._slots
            assert slots.ram is not None
            places = Places(slots.address, slots.slot_bytes)
            decode.bring(self._device, slots.ram, places, self._record_bytes, chosen, post)
        self.experts(rooms.normed, chosen, opening, rooms.between, rooms.x, rooms.x)

    def _route(self, rooms: Rooms) -> tuple[DeviceArray | None, DeviceArray | None]:
        """The router's logits, and the shared expert's; None for what there is not."""
        if self.router is None:
            return None, None
        both = rooms.logits[: self.router.outputs]
        self.router(rooms.normed, both)
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
