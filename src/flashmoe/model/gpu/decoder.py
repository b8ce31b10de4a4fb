"""The decoder on a GPU: a token at a time, or a prompt's chunk.

Owns what both share, and the face of the processor's decoder. Does not own a token's way
(``tokens``), a chunk's (``chunks``), or who is in which slot (``tiers``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flashmoe.kernels.cuda.device import Device
from flashmoe.model.decoder import Between
from flashmoe.model.gpu.chunks import Chunks
from flashmoe.model.gpu.head import Head
from flashmoe.model.gpu.state import GpuState
from flashmoe.model.gpu.tokens import Tier, Tokens
from flashmoe.model.gpu.weights import Weights
from flashmoe.model.head import EMBEDDING
from flashmoe.model.observer import Observer
from flashmoe.model.state import State
from flashmoe.model.trunk import Trunk
from flashmoe.quant import Array
from flashmoe.shape import ModelShape
from flashmoe.stream.streamer import Streamer


class GpuDecoder:
    """The whole model, with the face of :class:`flashmoe.model.decoder.Decoder`."""

    def __init__(
        self,
        shape: ModelShape,
        trunk: Trunk,
        device: Device,
        observer: Observer,
        tier: Tier,
        close: Callable[[], None],
    ) -> None:
        self.shape = shape
        self.close = close
        """Ends what goes on between device and streamer, before that closes."""
        self.observer = observer
        self._device, self._vram = device, tier.vram
        self._follows = tier.slots.ram is not None  # else a token finds what it wants in VRAM
        weights = Weights(trunk, device)
        embedding = weights.matrix(EMBEDDING, shape.vocabulary, shape.hidden)
        self._head = Head(device, shape, weights, embedding)
        self._tokens = Tokens(device, shape, weights, embedding, self._head, tier, observer)
        parts = tier.slots, tier.records, tier.vram
        self._chunks = Chunks(device, shape, weights, embedding, *parts, observer)
        self._given = device.zeros((shape.hidden,), np.float32)
        self._latest: Array | None = None  # hidden state (1, hidden) whose logits the head has

    def state(self, context_tokens: int, kv: str) -> State:
        """An empty timeline."""
        return GpuState(self.shape, context_tokens, np.dtype(np.float32), kv, self._device)

    @property
    def slots(self) -> int:
        """Experts that can be in the device's memory at once."""
        return self._vram.slots

    def fill(self) -> None:
        """Bring every expert into the device's memory, which has a slot for each.

        Raises:
            ReadError, DeviceError: one could not be read, or copied.
        """
        every = np.arange(self.shape.experts.count)[None]
        for layer in range(self.shape.layers):
            with self._vram.sweep(layer, every) as passing:
                for _ in passing.batches():
                    pass

    def empty(self) -> None:
        """Forget every expert in the device's memory."""
        self._vram.empty()

    def warm(self, shares: Array) -> None:
        """Expect the experts that were chosen most, ``shares`` (layers, experts) of the tokens:
        they stay in the device's memory once they are there."""
        self._vram.warm(shares)

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
        self._latest = None
        if len(ids) > 1:
            hidden = self._chunks(ids, state, between)
            state.moved(hidden[-1:].copy(), len(ids))
            return hidden
        if between is not None:
            between(1, 0)
        if not self._follows and not self._vram.whole:
            self.fill()  # all was forgotten
        hidden = self._tokens(int(ids[0]), state)
        self._latest = state.last
        return hidden

    def logits(self, x: Array) -> Array:
        """Hidden states (T, hidden) to logits (T, vocabulary)."""
        if x is self._latest:
            self.observer.ended(self.shape.layers - 1, "head")
            return self._head.logits[None].copy()  # before another timeline's pass
        self._latest = None
        y = np.empty((len(x), self.shape.vocabulary), np.float32)
        for row, hidden in enumerate(x):
            self._device.write(self._given, hidden)
            self._head.launch(self._given)
            self._device.synchronize()
            y[row] = self._head.logits
        self.observer.ended(self.shape.layers - 1, "head")
        return y
