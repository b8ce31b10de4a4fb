"""The decoder on a GPU: a token is one graph, captured once, in which the host is waited for only
where an expert is in no slot.

Owns the order of a pass between device and host. Does not own who is in which slot (``tiers``) or
the launches of a layer (``layer``), nor a prompt's way (``chunks``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from flashmoe.kernels.cuda.decode import Embedding, NormedProjection, Placed
from flashmoe.kernels.cuda.device import Device, DeviceArray, Graph
from flashmoe.kernels.cuda.mailbox import Mailbox
from flashmoe.model.decoder import Between
from flashmoe.model.gpu.chunks import Chunks
from flashmoe.model.gpu.layer import Layer, Slots, rooms
from flashmoe.model.gpu.state import GpuState
from flashmoe.model.gpu.weights import Weights
from flashmoe.model.head import EMBEDDING, NORM, OUTPUT
from flashmoe.model.observer import Observer
from flashmoe.model.state import State
from flashmoe.model.trunk import Trunk
from flashmoe.quant import Array
from flashmoe.shape import ModelShape
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers.vram import Vram

Graphs: TypeAlias = dict[int, Graph]


class GpuDecoder:
    """The whole model, with the face of :class:`flashmoe.model.decoder.Decoder`.

    ``records`` says of each layer how an expert lies in its record.
    """

    def __init__(
        self,
        shape: ModelShape,
        trunk: Trunk,
        device: Device,
        observer: Observer,
        slots: Slots,
        records: list[tuple[Placed, ...]],
        tier: Vram,
        close: Callable[[], None],
    ) -> None:
        self.shape = shape
        self.close = close
        """Ends what goes on between device and streamer, before that closes."""
        self.observer = observer
        self._device, self._tier = device, tier
        weights = Weights(trunk, device)
        vocabulary, hidden = shape.vocabulary, shape.hidden
        embedding = weights.matrix(EMBEDDING, vocabulary, hidden)
        self._embedding = Embedding(device, embedding)
        self._layers = [
            Layer(device, shape, weights, index, slots, record)
            for index, record in enumerate(records)
        ]
        head = embedding if shape.tied_head else weights.matrix(OUTPUT, vocabulary, hidden)
        factors = weights.norm(NORM, hidden, shape.norm_offset)
        self._chunks = Chunks(device, shape, weights, embedding, slots, records, tier, observer)
        self._head = NormedProjection(device, [head], factors, shape.norm_eps)
        self._rooms = rooms(device, shape, self._layers)
        self._given = device.zeros((hidden,), np.float32)
        self._logits = device.zeros((vocabulary,), np.float32)
        self._fetched = (
            device.pinned((hidden,), np.float32),
            device.pinned((vocabulary,), np.float32),
        )
        self._latest: Array | None = None  # hidden state (1, hidden) of which logits are fetched
        self._mailbox = Mailbox(device, shape.layers)
        self._graphs: WeakKeyDictionary[GpuState, Graphs] = WeakKeyDictionary()

    def state(self, context_tokens: int, kv: str) -> State:
        """An empty timeline."""
        return GpuState(self.shape, context_tokens, np.dtype(np.float32), kv, self._device)

    @property
    def slots(self) -> int:
        """Experts that can be in the device's memory at once."""
        return self._tier.slots

    def fill(self) -> None:
        """Bring every expert into the device's memory, which has a slot for each.

        Raises:
            ReadError, DeviceError: one could not be read, or copied.
        """
        every = np.arange(self.shape.experts.count)[None]
        for layer in range(self.shape.layers):
            with self._tier.sweep(layer, every) as passing:
                for _ in passing.batches():
                    pass

    def empty(self) -> None:
        """Forget every expert in the device's memory."""
        self._tier.empty()

    def forward(
        self,
        ids: Array,
        state: State,
        streamer: Streamer,
        between: Between | None = None,
    ) -> Array:
        """As ``Decoder.forward``; of a single token ``between`` is called once."""
        del streamer  # the tier has it
        assert isinstance(state, GpuState)
        self.observer.begin()
        state.begin()
        if len(ids) > 1:
            self._latest = None
            hidden = self._chunks(ids, state, between)
            state.moved(hidden[-1:].copy(), len(ids))
            return hidden
        if between is not None:
            between(1, 0)
        return self._pass(int(ids[0]), state)[None]

    def logits(self, x: Array) -> Array:
        """Hidden states (T, hidden) to logits (T, vocabulary)."""
        if x is self._latest:
            self.observer.ended(self.shape.layers - 1, "head")
            return self._fetched[1][None].copy()  # before another timeline's pass
        self._latest = None
        y = np.empty((len(x), self.shape.vocabulary), np.float32)
        for row, hidden in enumerate(x):
            self._device.write(self._given, hidden)
            self._head_of(self._given)
            self._device.synchronize()
            y[row] = self._fetched[1]
        self.observer.ended(self.shape.layers - 1, "head")
        return y

    def _head_of(self, x: DeviceArray) -> None:
        """Launches: the logits of a hidden state, fetched."""
        self._head(x, self._logits)
        self._device.fetch(self._fetched[1], self._logits)

    def _pass(self, token: int, state: GpuState) -> Array:
        """One token through every layer; its hidden state (hidden,)."""
        graph = self._graph(state)
        self._latest = None
        self._mailbox.begin(token, state.position)

        def work() -> None:
            graph.launch()  # an interrupt behind it must find somebody who answers the letters
            self._attend()

        self._mailbox.wait(work)
        self._device.synchronize()
        x = self._fetched[0].copy()
        state.moved(x[None])
        self._latest = state.last
        return x

    def _attend(self) -> None:
        """The host's side of a pass: what each layer asks for is brought."""
        if self._tier.whole:
            self._attend_whole()
            return
        for layer in range(self.shape.layers):
            ids, waits = self._mailbox.asked(layer, self.shape.experts.top_k)
            self.observer.routed(layer, ids[None])
            with self._tier.hold(layer, ids) as held:
                held.wait()
                if waits:
                    self._mailbox.answer(layer, held.slots)
            self.observer.ended(layer, "experts")

    def _attend_whole(self) -> None:
        """The same where every expert of the model is in a slot: nothing is ever asked for."""
        top_k = self.shape.experts.top_k
        self._mailbox.asked(self.shape.layers - 1, top_k)
        for layer, ids in enumerate(self._mailbox.ids(top_k)):
            self.observer.routed(layer, ids[None])
            self._tier.passed(layer, ids)
            self.observer.ended(layer, "experts")

    def _graph(self, state: GpuState) -> Graph:
        kept = self._graphs.setdefault(state, {})
        if state.turn not in kept:
            kept[state.turn] = self._device.captured(self._launches(state))
        return kept[state.turn]

    def _launches(self, state: GpuState) -> Callable[[], None]:
        """Those of one token, from the set of the state that is current to the other."""
        mailbox, table, here = self._mailbox, self._tier.table, state.turn

        def launch() -> None:
            self._embedding(mailbox.given, mailbox.inputs, self._rooms.x)
            for index, layer in enumerate(self._layers):
                letter, memory = mailbox.letter(index), state.of_layer(index, here)
                layer.launch(self._rooms, memory, mailbox.inputs, table(index), letter)
            self._device.fetch(self._fetched[0], self._rooms.x)
            self._head_of(self._rooms.x)

        return launch
