"""The streamed feed-forward part of a layer: route, hint, shared, hold, experts, combine.

Owns the order in which reads and arithmetic meet. Which experts are in memory decides how long
this takes and never what it returns.
"""

from __future__ import annotations

import numpy as np

from flashmoe.kernels import Kernels
from flashmoe.model.observer import Observer
from flashmoe.model.trunk import Trunk
from flashmoe.quant import Array
from flashmoe.shape import ModelShape
from flashmoe.stream.prefetch import WIDTH
from flashmoe.stream.streamer import Streamer


class MixtureOfExperts:
    """The experts of one layer, with their router and shared expert."""

    def __init__(
        self, shape: ModelShape, trunk: Trunk, layer: int, kernels: Kernels, observer: Observer
    ) -> None:
        self.shape = shape.experts
        self.layer = layer
        self.kernels = kernels
        self.observer = observer
        name, hidden = f"layers.{layer}.mlp", shape.hidden
        if self.shape.router == "softmax":
            self.gate = trunk.matrix(f"{name}.gate", self.shape.count, hidden)
        width = self.shape.shared_intermediate
        if width:
            self.shared_expert = trunk.expert(f"{name}.shared_expert", hidden, width)
            self.shared_expert_gate = trunk.matrix(f"{name}.shared_expert_gate", 1, hidden)

    def forward(self, x: Array, streamer: Streamer) -> Array:
        """(T, hidden) to (T, hidden)."""
        ids, weights = self.route(x)
        streamer.hint(self.layer, ids)  # reads start; the arithmetic below hides them
        y = self.shared(x)
        with streamer.hold(self.layer, ids) as experts:
            return self.kernels.add(self.kernels.experts(x, ids, weights, experts), y)

    def route(self, x: Array) -> tuple[Array, Array]:
        """Expert ids and weights (T, top_k); slices of a dense network are all chosen."""
        ids, weights = self._choose(x)
        self.observer.routed(self.layer, ids)
        self.observer.ended(self.layer, "route")
        return ids, weights

    def _choose(self, x: Array) -> tuple[Array, Array]:
        if self.shape.router == "all":
            ids = np.broadcast_to(np.arange(self.shape.count), (len(x), self.shape.count))
            return ids, np.ones(ids.shape, x.dtype)
        (logits,) = self.kernels.project(x, (self.gate,))
        return self.kernels.route(logits, self.shape.top_k, self.shape.renormalize)

    def choose_early(self, x: Array) -> Array:
        """Ids (T, top_k) as :meth:`route` gives them, for ``x`` (T, hidden) that is not final."""
        return self._choose(x)[0]

    def rank(self, x: Array) -> Array:
        """All ids, (experts,), or those that matter: the likeliest to be chosen for ``x`` (1,
        hidden) first. Unlike :meth:`route` it may be told an ``x`` that is not final."""
        if self.shape.router == "all":
            return np.arange(self.shape.count)
        count = min(WIDTH * self.shape.top_k, self.shape.count)
        ids, _ = self.kernels.route(self.kernels.matmul(x, self.gate), count, False)
        return ids.ravel()

    def shared(self, x: Array) -> Array:
        """The always-active expert under its own sigmoid gate; zero where there is none."""
        if not self.shape.shared_intermediate:
            return np.zeros_like(x)
        y = self.kernels.swiglu(x, self.shared_expert, self.shared_expert_gate)
        self.observer.ended(self.layer, "shared")
        return y
