"""What a bench says of prompts: bytes touched once, and the limit that they make."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from flashmoe.apps import ceilings, prompt_figures
from flashmoe.apps.bench import SEED, reply
from flashmoe.apps.prompt_figures import PromptCost, Touched
from flashmoe.engine import Engine
from flashmoe.model.observer import Observer
from flashmoe.options import Runtime
from flashmoe.step import Step
from flashmoe.store.reader import Store
from tests.apps.conftest import SHAPE, Command

DISK = 1e6
LIMITS = ceilings.Ceilings(DISK, 4, True, 2e7)
FLAGS = ("--gen-tokens", 2, "--repeat", 1, "--json")


@pytest.fixture
def ceilings_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "measure", lambda *_: LIMITS)


@pytest.fixture
def record(store) -> int:
    return Store.open(store).layout(0).record_bytes


class Seen(Observer):
    """Every expert that was chosen, by layer."""

    def __init__(self) -> None:
        self.keys: set[tuple[int, int]] = set()

    def routed(self, layer, ids):
        self.keys |= {(layer, int(expert)) for expert in np.ravel(ids)}


@pytest.mark.usefixtures("ceilings_known")
def test_a_cold_prompt_needs_what_it_touches_once(command: Command, store, record):
    tokens = 3
    flags = ("--prompt-tokens", tokens, "--cold", "--ram", "floor", *FLAGS)
    found = json.loads(command("bench", store, *flags).out)
    seen = Seen()
    with Engine.open(store, observer=seen) as engine:
        ids = np.random.default_rng(SEED + 1).integers(0, SHAPE.vocabulary, tokens)
        engine.session().logits(ids.tolist())
    assert 4 * SHAPE.experts.top_k < len(seen.keys) < 4 * SHAPE.experts.count
    assert found["prompt_touched_bytes"] == found["prompt_needed_bytes"] == len(seen.keys) * record
    assert found["prompt_bytes"] >= found["prompt_needed_bytes"]
    seconds = max(found["prompt_needed_bytes"] / DISK, found["prompt_ms_arithmetic"] / 1e3)
    assert found["pp_limit_tok_s"] == pytest.approx(tokens / seconds)
    assert found["pp_share_of_limit"] == pytest.approx(found["pp_tok_s"] / found["pp_limit_tok_s"])
    spent = found["prompt_ms_arithmetic"] + found["prompt_ms_read_wait"]
    assert found["ttft_ms"] == pytest.approx(spent)


@pytest.mark.usefixtures("ceilings_known")
def test_a_warm_prompt_needs_nothing_and_its_arithmetic_is_the_limit(command: Command, store):
    found = json.loads(command("bench", store, "--prompt-tokens", 100, *FLAGS).out)
    assert found["prompt_touched_bytes"] > 0 == found["prompt_needed_bytes"]
    assert found["prompt_bytes"] == 0
    arithmetic = found["prompt_ms_arithmetic"] / 1e3
    assert found["pp_limit_tok_s"] == pytest.approx(100 / arithmetic)
    assert found["pp_share_of_limit"] <= 1.001


def step(misses: int) -> Step:
    return Step(1, "", None, (), None, 40, 0, misses, 10**6, 250.0, 1000.0)


def test_what_was_missed_twice_is_needed_once_and_what_was_there_not_at_all(store, record):
    with Engine.open(store) as engine:
        for misses, needed in ((9, 5), (5, 5), (2, 2)):
            prompts = [(step(misses), PromptCost((2, 1, 0, 2), 7000))]
            found = prompt_figures.figures(engine, LIMITS, prompts, 20.0)
            assert list(found) == list(prompt_figures.KEYS)
            assert found["prompt_touched_bytes"] == 5 * record
            assert found["prompt_needed_bytes"] == needed * record
            assert found["pp_limit_tok_s"] == pytest.approx(40 / 0.75)  # the arithmetic
            assert found["prompt_device_bytes"] == 7000
            slow = prompt_figures.figures(
                engine, replace(LIMITS, disk_bytes_s=100.0), prompts, 20.0
            )
            assert slow["pp_limit_tok_s"] == pytest.approx(40 / (needed * record / 100))


def test_without_slots_the_device_tells_what_was_missing(store, record):
    with Engine.open(store, runtime=Runtime(io="os")) as engine:
        for device, needed in ((300, 300), (10**9, 5 * record), (None, 0)):
            prompts = [(step(9), PromptCost((2, 1, 0, 2), device))]
            found = prompt_figures.figures(engine, LIMITS, prompts, 20.0)
            assert found["prompt_needed_bytes"] == needed
            assert found["prompt_device_bytes"] == device


def test_only_the_prompt_is_watched(store):
    touched = Touched()
    with Engine.open(store, observer=touched) as engine:
        one = reply(engine, 1, 1, 9, touched)
        assert one.prompt.touched == (SHAPE.experts.top_k,) * 4
        assert reply(engine, 1, 1, 1, touched).prompt.touched == one.prompt.touched
    assert touched.stop() == []
