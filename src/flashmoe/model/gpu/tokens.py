"""A token through every layer, as one graph, and the host's side of it.

Owns the order between device and host: the device goes from the embedding to the logits on its own,
and the host reads its letters, layer by layer (``mailbox``), so that the tier can follow
(``tiers.vram``). Where every expert of the model is in a slot there is nothing to follow: then the
device reads a table of its own, and the choices come with the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from flashmoe.kernels.cuda import decode
from flashmoe.kernels.cuda.decode import Embedding, Placed
from flashmoe.kernels.cuda.descriptors import Resident
from flashmoe.kernels.cuda.device import Device, Graph
from flashmoe.kernels.cuda.mailbox import ASKED, THERE, Asked, Mailbox
from flashmoe.model.gpu.head import Head
from flashmoe.model.gpu.layer import Layer, Slots, rooms
from flashmoe.model.gpu.state import GpuState
from flashmoe.model.gpu.weights import Weights
from flashmoe.model.observer import Observer
from flashmoe.quant import Array
from flashmoe.shape import ModelShape
from flashmoe.stream.tiers.vram import Vram

Graphs: TypeAlias = dict[tuple[int, bool], Graph]
"""By the set of the state that is current, and by whether every expert has a slot."""


@dataclass(frozen=True)
class Tier:
    """Where experts lie: ``slots``, how an expert lies in each layer's records and their bytes, and
    the ``vram`` that says who is in which slot, in memory that it shares with the device."""

    slots: Slots
    records: list[tuple[Placed, ...]]
    record_bytes: list[int]
    vram: Vram
    mailbox: Mailbox
    places: Array
    """Where in RAM experts are, if the device may know (``Vram``'s ``records``)."""


class Tokens:
    """The layers of ``decoder.GpuDecoder``, for one token at a time."""

    def __init__(
        self,
        device: Device,
        shape: ModelShape,
        weights: Weights,
        embedding: Resident,
        head: Head,
        tier: Tier,
        observer: Observer,
    ) -> None:
        self._device, self._shape, self._head = device, shape, head
        self._tier, self._observer, self._mailbox = tier, observer, tier.mailbox
        layers, top_k = shape.layers, shape.experts.top_k
        self._embedding = Embedding(device, embedding)
        self._chosen = device.empty((layers, top_k), np.int32)
        self._layers = [
            Layer(
                device,
                shape,
                weights,
                index,
                tier.slots,
                tier.records[index],
                tier.record_bytes[index],
                decode.choice(device, self._chosen[index]),
            )
            for index in range(layers)
        ]
        self._rooms = rooms(device, shape, self._layers)
        self._hidden: Array = device.pinned((shape.hidden,), np.float32)
        self._ids: Array = device.pinned((layers, top_k), np.int32)
        # The device's own table, for when none of it changes any more, and of which generation.
        self._table = device.zeros((layers, shape.experts.count), np.int32)
        self._generation = 0
        self._graphs: WeakKeyDictionary[GpuState, Graphs] = WeakKeyDictionary()

    def __call__(self, token: int, state: GpuState) -> Array:
        """Pass one token; its hidden state (1, hidden). ``head.logits`` are its logits then.

        Raises:
            ReadError, DeviceError: the pass has ended, and the timeline is what it was.
        """
        whole, vram = self._tier.vram.whole, self._tier.vram
        graph = self._graph(state, whole)
        if whole:
            self._settle_table()
        taken = 0 if whole else vram.begin()
        self._mailbox.begin(token, state.position, taken)

        def work() -> None:
            graph.launch()  # an interrupt behind it must find somebody who answers the letters
            if not whole:
                self._follow()

        try:
            self._mailbox.wait(work)
            self._device.synchronize()
            if not whole:
                vram.end()
        except BaseException:
            vram.abandon()
            raise
        if whole:
            self._count()
        hidden = self._hidden[None].copy()
        state.moved(hidden)
        return hidden

    def _follow(self) -> None:
        """The host's side of a pass: it learns what each layer chose, and answers."""
        for layer in range(self._shape.layers):
            asked = self._mailbox.asked(layer, self._shape.experts.top_k)
            self._observer.routed(layer, asked.ids[None])
            self._tell(layer, asked)
            self._observer.ended(layer, "experts")

    def _tell(self, layer: int, asked: Asked) -> None:
        ids, sources, slots = asked.ids.tolist(), asked.sources.tolist(), asked.slots.tolist()
        taken = {
            expert: slot
            for expert, slot, source in zip(ids, slots, sources, strict=True)
            if source != THERE
        }
        wanted = [expert for expert, source in zip(ids, sources, strict=True) if source == ASKED]

        def answer(expert: int, place: int) -> None:
            self._mailbox.answer(layer, ids.index(expert), place)

        self._tier.vram.follow(layer, asked.ids, asked.early, taken, wanted, answer)

    def _count(self) -> None:
        """The same where every expert was in a slot."""
        for layer, ids in enumerate(self._ids.astype(np.int64)):
            self._observer.routed(layer, ids[None])
            self._tier.vram.passed(layer, ids)
            self._observer.ended(layer, "experts")

    def _settle_table(self) -> None:
        """The device's own table says what the tier's does."""
        vram = self._tier.vram
        if self._generation != vram.generation:
            self._device.write(self._table, np.array(vram.tables()))
            self._generation = vram.generation

    def _graph(self, state: GpuState, whole: bool) -> Graph:
        kept = self._graphs.setdefault(state, {})
        if (state.turn, whole) not in kept:
            kept[state.turn, whole] = self._device.captured(self._launches(state, whole))
        return kept[state.turn, whole]

    def _launches(self, state: GpuState, whole: bool) -> Callable[[], None]:
        """Those of one token, from the set of the state that is current to the other."""
        mailbox, tier, here = self._mailbox, self._tier, state.turn

        def launch() -> None:
            self._embedding(mailbox.given, mailbox.inputs, self._rooms.x)
            for index, layer in enumerate(self._layers):
                table = self._table[index] if whole else tier.vram.table(index)
                post = None if whole else mailbox.post(index, tier.places[index])
                memory = state.of_layer(index, here)
                layer.launch(self._rooms, memory, mailbox.inputs, table, post)
            self._device.fetch(self._hidden, self._rooms.x)
            if whole:
                self._device.fetch(self._ids, self._chosen)
            self._head.launch(self._rooms.x)

        return launch
