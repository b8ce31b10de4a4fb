"""What a layer foretells: its own routing, where it is asked with the stream it will see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashmoe.engine import Engine
from flashmoe.model.decoder import Layer
from flashmoe.model.observer import Observer
from flashmoe.options import Budget
from flashmoe.quant import Array
from flashmoe.stream.streamer import Streamer
from tests.synthetic import DENSE, HYBRID, write_store


class Routing(Observer):
    """Keeps the last token's experts, by layer."""

    def __init__(self) -> None:
        self.chosen: dict[int, Array] = {}

    def routed(self, layer: int, ids: Array) -> None:
        self.chosen[layer] = ids[-1]


@pytest.mark.parametrize("shape", [HYBRID, DENSE])
def test_a_rank_of_the_stream_that_the_router_sees_is_the_routing(
    tmp_path: Path, shape: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``foresee`` is told of the next layer, with a rank of a stream one mixer behind its own."""
    seen = Routing()
    asked: list[int] = []
    ranks: dict[int, list[int]] = {}
    mix = Layer._mix

    def mixed(self: Layer, x: Array, *given: Any) -> Array:
        y = mix(self, x, *given)
        streams.append(y)
        return y

    streams: list[Array] = []

    def foresee(self: Streamer, layer: int, rank: object) -> None:
        asked.append(layer)

    monkeypatch.setattr(Streamer, "foresee", foresee)
    path = write_store(tmp_path / "store", shape)  # type: ignore[arg-type]
    with Engine.open(path, budget=Budget(), observer=seen) as engine:
        session, layers = engine.session(), engine.shape.layers
        session.logits([1, 2, 3])
        assert asked == []  # a chunk asks for too many experts to guess
        forward = Layer.forward

        def watched(self: Layer, x: Array, *given: Any) -> Array:
            monkeypatch.setattr(Layer, "_mix", mixed)
            y = forward(self, x, *given)
            ranks[self.index] = self.rank(streams[-1]).tolist()
            return y

        monkeypatch.setattr(Layer, "forward", watched)
        session.logits([4])
        assert asked == list(range(1, layers))
        top_k = engine.shape.experts.top_k
        for layer in range(layers):
            assert set(ranks[layer][:top_k]) == set(np.ravel(seen.chosen[layer]).tolist())
