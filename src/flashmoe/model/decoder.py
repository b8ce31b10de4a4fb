"""The decoder: embed, layers, norm, logits; a decode step and a prompt chunk are one function.

Owns the residual stream. Knows nothing of text, sampling or where experts lie.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TypeAlias

from flashmoe.kernels import Kernels
from flashmoe.kernels.kv import KeyValues
from flashmoe.kernels.reference import lookup
from flashmoe.model.attention import Attention
from flashmoe.model.head import EMBEDDING, Head
from flashmoe.model.moe import MixtureOfExperts
from flashmoe.model.observer import Observer
from flashmoe.model.recurrent import GatedDeltaNet
from flashmoe.model.state import LayerState, RecurrentState, State
from flashmoe.model.trunk import Trunk
from flashmoe.quant import Array
from flashmoe.shape import ModelShape
from flashmoe.stream.expectation import sample
from flashmoe.stream.streamer import Streamer

Between: TypeAlias = Callable[[int, int], None]
"""Called between layers: the tokens of the pass, and how many layers they have behind them."""


class Layer:
    """``x += mixer(norm(x)); x += moe(norm(x))``."""

    def __init__(
        self, shape: ModelShape, trunk: Trunk, index: int, kernels: Kernels, observer: Observer
    ) -> None:
        name = f"layers.{index}"
        self.index = index
        self.eps = shape.norm_eps
        self.kernels = kernels
        self.observer = observer
        offset, hidden = shape.norm_offset, shape.hidden
        norm = trunk.norm(f"{name}.input_layernorm", hidden, offset)
        self.post_norm = trunk.norm(f"{name}.post_attention_layernorm", hidden, offset)
        self.mixer: Attention | GatedDeltaNet
        if shape.mixers[index] == "attention":
            self.mixer = Attention(shape, trunk, f"{name}.self_attn", norm, kernels)
        else:
            self.mixer = GatedDeltaNet(shape, trunk, f"{name}.linear_attn", norm, kernels)
        self.moe = MixtureOfExperts(shape, trunk, index, kernels, observer)
        self.following: Layer | None = None

    def forward(self, x: Array, state: LayerState, position: int, streamer: Streamer) -> Array:
        """(T, hidden) to (T, hidden); the first token stands at ``position``."""
        x = self._mix(x, state, position)
        self.observer.ended(self.index, "mixer")
        normed = self.kernels.rms_norm(x, self.post_norm, self.eps)
        if self.following is not None:
            self.following.announce(x, streamer)
        x = self.kernels.add(self.moe.forward(normed, streamer), x)
        self.observer.ended(self.index, "experts")
        return x

    def announce(self, x: Array, streamer: Streamer, *, at_once: bool = False) -> None:
        """Let what this layer is likely to choose be read ahead, or at once; ``x`` (T, hidden) is
        the residual stream before it has come so far."""
        if len(x) == 1:
            streamer.foresee(self.index, partial(self.rank, x))
        else:
            early = partial(self.choose_early, sample(x))
            streamer.expect(self.index, len(x), early, at_once=at_once)

    def choose_early(self, x: Array) -> Array:
        """The ids (T, top_k) that this layer would choose for ``x`` (T, hidden) as it is."""
        return self.moe.choose_early(self.kernels.rms_norm(x, self.post_norm, self.eps))

    def rank(self, x: Array) -> Array:
        """The ids of the experts, (n,), that this layer is likely to choose for ``x`` (1, hidden),
        likeliest first; ``x`` is the residual stream before it has come so far."""
        return self.moe.rank(self.kernels.rms_norm(x, self.post_norm, self.eps))

    def _mix(self, x: Array, state: LayerState, position: int) -> Array:
        match self.mixer, state:
            case Attention() as mixer, KeyValues():
                return mixer.forward(x, state)
            case GatedDeltaNet() as net, RecurrentState():
                return net.forward(x, state, position)
        raise TypeError(f"layer {self.index} and its state are of different kinds")


class Decoder:
    """The whole model. Immutable; every timeline brings its own :class:`State`."""

    def __init__(
        self, shape: ModelShape, trunk: Trunk, kernels: Kernels, observer: Observer
    ) -> None:
        self.shape = shape
        self.kernels = kernels
        self.observer = observer
        vocabulary, hidden = shape.vocabulary, shape.hidden
        self.embedding = trunk.matrix(EMBEDDING, vocabulary, hidden)
        self.layers = [
            Layer(shape, trunk, index, kernels, observer) for index in range(shape.layers)
        ]
        for layer, following in pairwise(self.layers):
            layer.following = following
        self.head = Head(shape, trunk, kernels)

    def state(self, context_tokens: int, kv: str) -> State:
        """An empty timeline."""
        return State(self.shape, context_tokens, self.kernels.dtype, kv)

    def empty(self) -> None:
        """Forget every expert that lies nearer than the streamer's; here there is none."""

    def warm(self, shares: Array) -> None:
        """Expect these to be chosen, (layers, experts), where experts lie nearer than that."""

    def close(self) -> None:
        """Before the streamer closes; here nothing depends on it."""

    def forward(
        self,
        ids: Array,
        state: State,
        streamer: Streamer,
        between: Between | None = None,
    ) -> Array:
        """Pass ids (T,) through every layer; returns the final hidden states (T, hidden).

        Advances ``state`` by T tokens. The caller keeps T to a chunk. ``between`` is called before
        each layer with T and the number of layers done; what it raises ends the pass there, with
        ``state`` half moved on.
        """
        self.observer.begin()
        x = lookup(ids, self.embedding, self.kernels.dtype)
        self.observer.ended(0, "embed")
        if len(x) > 1:
            self.layers[0].announce(x, streamer, at_once=True)
        for layer, memory in zip(self.layers, state.layers, strict=True):
            if between is not None:
                between(len(ids), layer.index)
            x = layer.forward(x, memory, state.position, streamer)
        state.position += len(ids)
        state.last = x[-1:].copy()
        return x

    def logits(self, x: Array) -> Array:
        """Hidden states (T, hidden) to logits (T, vocabulary)."""
        y = self.head.logits(x)
        self.observer.ended(self.shape.layers - 1, "head")
        return y
