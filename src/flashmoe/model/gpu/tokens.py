"""A token through every layer, as one graph, and the host's side of it.

Owns the order between device and host: the device goes from the embedding to the logits on its own,
and the host reads its letters, layer by layer (``mailbox``), so that the tier can follow
(``tiers.vram``). There are four ways (:class:`Way`), each a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from flashmoe.kernels.cuda import decode
from flashmoe.kernels.cuda.decode import MOST_CHOSEN, Choice, Embedding, Post
from flashmoe.kernels.cuda.descriptors import Placed, Resident
from flashmoe.kernels.cuda.device import Device, DeviceArray, Graph
from flashmoe.kernels.cuda.mailbox import ASKED, THERE, Asked, Mailbox
from flashmoe.model.gpu.head import Head
from flashmoe.model.gpu.layer import Layer, Slots, rooms
from flashmoe.model.gpu.state import GpuState
from flashmoe.model.gpu.weights import Weights
from flashmoe.model.observer import Observer
from flashmoe.quant import Array
from flashmoe.shape import ModelShape
from flashmoe.stream.prefetch import WIDTH
from flashmoe.stream.tiers.vram import Vram


class Way(Enum):
    """By where experts are: what the device may do without the host, and what beside."""

    WHOLE = "every expert of the model is in a slot, and nobody follows"
    AHEAD = "every other one is in RAM, and some are brought before they are chosen"
    FORETOLD = "some are on SSD alone, and the host hears what is likely to be chosen"
    PLAIN = "hints are off"


Graphs: TypeAlias = dict[tuple[int, Way], Graph]
"""By the set of the state that is current, and the way."""


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
    """Where in RAM experts are (``Vram``'s ``records``)."""


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
        self._early = decode.early(device)
        ranked = min(WIDTH * top_k, MOST_CHOSEN, shape.experts.count)
        self._ranks: Array = device.pinned((layers, ranked), np.int32)
        self._unused = decode.choice(device, device.empty((ranked,), np.int32))
        # The device's own table, for when none of it changes any more, and of which generation.
        self._table = device.zeros((layers, shape.experts.count), np.int32)
        self._generation = 0
        self._graphs: WeakKeyDictionary[GpuState, Graphs] = WeakKeyDictionary()

    def __call__(self, token: int, state: GpuState) -> Array:
        """Pass one token; its hidden state (1, hidden). ``head.logits`` are its logits then.

        Raises:
            ReadError, DeviceError: the pass has ended, and the timeline is what it was.
        """
        vram = self._tier.vram
        if vram.whole:
            self._pass_alone(token, state)
        else:
            self._pass_followed(token, state, vram)
        hidden = self._hidden[None].copy()
        state.moved(hidden)
        return hidden

    def _pass_alone(self, token: int, state: GpuState) -> None:
        """Where every expert is in a slot the device reads a table of its own, and the choices come
        with the logits."""
        vram = self._tier.vram
        graph = self._graph(state, Way.WHOLE)
        if self._generation != vram.generation:
            self._device.write(self._table, np.array(vram.tables()))
            self._generation = vram.generation
        self._mailbox.begin(token, state.position)
        graph.launch()
        self._device.synchronize()
        for layer, ids in enumerate(self._ids.astype(np.int64)):
            self._observer.routed(layer, ids[None])
            vram.passed(layer, ids)
            self._observer.ended(layer, "experts")

    def _pass_followed(self, token: int, state: GpuState, vram: Vram) -> None:
        way = Way.PLAIN
        if vram.hints and self._layers[0].chooses:
            way = Way.AHEAD if vram.lasting else Way.FORETOLD
        graph = self._graph(state, way)
        self._mailbox.begin(token, state.position, vram.begin())

        def work() -> None:
            graph.launch()  # an interrupt behind it must find somebody who answers the letters
            self._follow(way)

        try:
            self._mailbox.wait(work)
            self._device.synchronize()
            vram.end()
        except BaseException:
            vram.abandon()
            raise

    def _follow(self, way: Way) -> None:
        """The host's side of a pass: it learns what each layer chose, and answers."""
        for layer in range(self._shape.layers):
            asked = self._mailbox.asked(layer, self._shape.experts.top_k, self._tier.vram.tend)
            self._observer.routed(layer, asked.ids[None])
            if way is Way.FORETOLD and layer + 1 < self._shape.layers:
                self._tier.vram.foresee(layer + 1, partial(self._ranked, layer + 1))
            self._tell(layer, asked, asked.early if way is Way.AHEAD else {})
            self._observer.ended(layer, "experts")

    def _ranked(self, layer: int) -> Array:
        """What a layer is likely to choose, as the device has found before the letter before."""
        ranks: Array = self._ranks[layer].astype(np.int64)
        return ranks

    def _tell(self, layer: int, asked: Asked, early: dict[int, int]) -> None:
        ids, sources, slots = asked.ids.tolist(), asked.sources.tolist(), asked.slots.tolist()
        taken = {
            expert: slot
            for expert, slot, source in zip(ids, slots, sources, strict=True)
            if source != THERE
        }
        wanted = [expert for expert, source in zip(ids, sources, strict=True) if source == ASKED]

        def answer(expert: int, place: int) -> None:
            self._mailbox.answer(layer, ids.index(expert), place)

        self._tier.vram.follow(layer, asked.ids, early, taken, wanted, answer)

    def _graph(self, state: GpuState, way: Way) -> Graph:
        kept = self._graphs.setdefault(state, {})
        if (state.turn, way) not in kept:
            kept[state.turn, way] = self._device.captured(self._launches(state, way))
        return kept[state.turn, way]

    def _launches(self, state: GpuState, way: Way) -> Callable[[], None]:
        """Those of one token, from the set of the state that is current to the other."""
        mailbox, rooms, here = self._mailbox, self._rooms, state.turn

        def launch() -> None:
            come = _nothing
            self._embedding(mailbox.given, mailbox.inputs, rooms.x)
            for index, layer in enumerate(self._layers):
                table, post = self._found(index, way)
                layer.mix(rooms, state.of_layer(index, here), mailbox.inputs)
                if way is Way.FORETOLD and index + 1 < len(self._layers):
                    self._rank(index + 1)
                opening = layer.choose(rooms, table, post)
                come = self._bring(index, way, post, come)
                layer.add_experts(rooms, opening)
            self._device.fetch(self._hidden, rooms.x)
            if way is Way.WHOLE:
                self._device.fetch(self._ids, self._chosen)
            self._head.launch(rooms.x)

        return launch

    def _bring(
        self, index: int, way: Way, post: Post | None, come: Callable[[], None]
    ) -> Callable[[], None]:
        """What a layer has chosen comes to its slots; and some of what the next one is likely to
        choose begins to, beside this one's experts and the next mixer, so that the bus does not
        stand still meanwhile. ``come`` has what is launched next wait for what was brought early
        for this layer; the same of the next one comes back."""
        if post is None:
            return come
        layer, following = self._layers[index], self._layers[index + 1 : index + 2]
        if way is not Way.AHEAD or not following:
            layer.bring(post)
            come()
            return _nothing
        (after,), (table, early) = following, self._found(index + 1, way)
        assert early is not None and early.early is not None
        found = self._device.beside(partial(after.anticipate, self._rooms, table, early))
        layer.bring(post)
        coming = self._device.beside(partial(after.bring, early, early.early.chosen))
        found()  # and so ``come``, behind which it began
        return coming

    def _found(self, layer: int, way: Way) -> tuple[DeviceArray, Post | None]:
        """By what the device finds a layer's experts, and by what it tells of them."""
        tier = self._tier
        if way is Way.WHOLE:
            return self._table[layer], None
        early = self._early if way is Way.AHEAD and layer else None
        post = self._mailbox.post(layer, tier.places[layer], early)
        return tier.vram.table(layer), post

    def _rank(self, layer: int) -> None:
        unused = self._unused
        into = Choice(self._ranks[layer], unused.weights, unused.slots, None)
        self._layers[layer].rank(self._rooms, self._tier.vram.table(layer), into)


def _nothing() -> None:
    pass
