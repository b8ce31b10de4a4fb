"""One layer's launches for one token: norm and projections, mixer; norm and router, experts.

Owns their order (SPEC 1.3), as ``model.decoder`` and ``model.moe`` have it for the processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmoe.kernels.cuda import decode
from flashmoe.kernels.cuda.attention import Attention, KeyValues
from flashmoe.kernels.cuda.decode import (
    Choice,
    Norm,
    NormedProjection,
    Places,
    Post,
    Projection,
    Vector,
)
from flashmoe.kernels.cuda.delta import DeltaNet, DeltaState
from flashmoe.kernels.cuda.descriptors import Placed, Resident
from flashmoe.kernels.cuda.device import Device, DeviceArray
from flashmoe.kernels.cuda.feed_forward import FeedForward
from flashmoe.model.gpu.mixing import Mixing
from flashmoe.model.gpu.weights import Weights
from flashmoe.shape import ModelShape

REACH = 2
"""One in so many of those that a token chooses, the likeliest, are anticipated."""
ANTICIPATED = 2
"""So many of them at most, for which a bus has time while experts and the next mixer compute."""


@dataclass(frozen=True, eq=False)
class Rooms:
    """Memory of a token on its way, shared by all layers."""

    x: DeviceArray
    """The residual stream (hidden,) between layers."""
    y: DeviceArray
    """The same within a layer, behind the mixer: what is before it stays until the layer's end."""
    normed: Vector
    projected: DeviceArray
    mixed: dict[int, Vector]
    """By length: heads of attention and of delta nets may differ."""
    attended: tuple[DeviceArray, DeviceArray] | None
    """Partial sums of attention."""
    logits: DeviceArray
    """The router's, and behind them the shared expert's gate."""
    early: DeviceArray
    """The same, of a residual stream that has not come so far."""
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

    @property
    def chooses(self) -> bool:
        """Whether there is a router: else every expert is chosen."""
        return self._shape.experts.router == "softmax"

    def mix(
        self,
        rooms: Rooms,
        state: KeyValues | tuple[DeltaState, DeltaState],
        inputs: DeviceArray,
    ) -> None:
        """From ``rooms.x`` to ``rooms.y``; ``inputs`` has the token's position."""
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
        self.out(mixed, rooms.y, rooms.x)

    def choose(self, rooms: Rooms, table: DeviceArray, post: Post | None) -> DeviceArray | None:
        """Route ``rooms.y``; the logit of the shared expert's gate, if it has one. Without ``post``
        every expert has a slot by the ``table``."""
        logits, opening = self._route(rooms)
        renormalize, chosen = self._shape.experts.renormalize, self._chosen
        decode.route(self._device, logits, renormalize, table, chosen, post)
        return opening

    def add_experts(self, rooms: Rooms, opening: DeviceArray | None) -> None:
        """From ``rooms.y`` to ``rooms.x``: those chosen are in their slots."""
        self.experts(rooms.normed, self._chosen, opening, rooms.between, rooms.y, rooms.x)

    def anticipate(self, rooms: Rooms, table: DeviceArray, post: Post) -> None:
        """Give slots to what the layer is likely to choose and has in none, by ``rooms.y`` of the
        one before; it is to be brought there (``post.early``)."""
        top_k = self._shape.experts.top_k
        reach, most = max(top_k // REACH, 1), ANTICIPATED
        logits = self._early_logits(rooms)
        decode.anticipate(self._device, logits, reach, most, top_k, table, post)

    def rank(self, rooms: Rooms, table: DeviceArray, into: Choice) -> None:
        """What the layer is likely to choose, likeliest first, by ``rooms.y`` of the one before."""
        decode.route(self._device, self._early_logits(rooms), False, table, into)

    def _early_logits(self, rooms: Rooms) -> DeviceArray:
        assert isinstance(self.router, NormedProjection)
        both = rooms.early[: self.router.outputs]
        self.router(rooms.y, both)
        return both[: self._shape.experts.count]

    def bring(self, post: Post, chosen: Choice | None = None) -> None:
        """Copy to their slots what was chosen and is not there, or of another choice."""
        slots, chosen = self._slots, self._chosen if chosen is None else chosen
        assert slots.ram is not None
        places = Places(slots.address, slots.slot_bytes)
        decode.bring(self._device, slots.ram, places, self._record_bytes, chosen, post)

    def _route(self, rooms: Rooms) -> tuple[DeviceArray | None, DeviceArray | None]:
        """The norm, the router's logits, and the shared expert's; None for what there is not."""
        if isinstance(self.router, Norm):
            self.router(rooms.y, rooms.normed)
            return None, None
        both = rooms.logits[: self.router.outputs]
        self.router(rooms.y, both, rooms.normed)
        count = self._shape.experts.count if self.chooses else 0
        return both[:count] if count else None, both[count:] if len(both) > count else None


def rooms(device: Device, shape: ModelShape, layers: list[Layer]) -> Rooms:
    """As large as the largest layer wants."""
    lengths = {layer.mixer.outputs for layer in layers}
    return Rooms(
        device.zeros((shape.hidden,), np.float32),
        device.zeros((shape.hidden,), np.float32),
        decode.vector(device, shape.hidden),
        device.zeros((max(layer.inward.outputs for layer in layers),), np.float32),
        {length: decode.vector(device, length) for length in lengths},
        next((layer.mixer.room() for layer in layers if isinstance(layer.mixer, Attention)), None),
        device.zeros((shape.experts.count + 1,), np.float32),
        device.zeros((shape.experts.count + 1,), np.float32),
        layers[0].experts.room(shape.experts.top_k),
    )
