"""The trained Qwen3.5-MoE writes what it writes in transformers, by the same experts.

Both compute in float32 from the same bf16 weights. A difference counts as none only at a near
tie (see :mod:`tests.oracle.greedy`), and is then reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import AutoModelForCausalLM

from flashmoe import Budget, Engine, Sampling
from flashmoe.quant import Array
from tests.oracle.greedy import (
    Continuation,
    Routing,
    continue_greedily,
    experts_that_differ,
    forced,
    tokens_that_differ,
)
from tests.tolerances import FLOAT32_LOGITS, NEAR_TIE

pytestmark = pytest.mark.oracle

TOKENS = 64
PROMPTS = (
    "It is a truth universally acknowledged, that a single man in possession of",
    "Emma was sitting by the fire when Mr. Knightley came in, and",
    "In the beginning God created the heaven and the earth. And",
    "And it came to pass in those days, that",
)
CHAT = [{"role": "user", "content": "What is the weather like in Bath today?"}]


@pytest.fixture(scope="module")
def theirs(austen: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        austen, dtype=torch.float32, experts_implementation="eager"
    ).eval()


@pytest.fixture(scope="module", params=["cpu", "reference"])
def watched(request: pytest.FixtureRequest, austen_store: Path) -> Iterator[tuple[Engine, Routing]]:
    routing = Routing()
    with Engine.open(
        austen_store, budget=Budget(kv="f32"), kernels=request.param, observer=routing
    ) as engine:
        yield engine, routing


@pytest.fixture(scope="module")
def continuations(theirs: Any, austen_store: Path) -> tuple[Continuation, ...]:
    with Engine.open(austen_store, budget=Budget(kv="f32")) as engine:
        prompts = [engine.tokenizer.encode(prompt) for prompt in PROMPTS]
        segments = engine.template.render(CHAT)
        prompts.append(engine.tokenizer.encode_segments(segments))
    return tuple(continue_greedily(theirs, prompt, TOKENS) for prompt in prompts)


@pytest.fixture(params=range(len(PROMPTS) + 1))
def expected(
    request: pytest.FixtureRequest, continuations: tuple[Continuation, ...]
) -> Continuation:
    return continuations[int(request.param)]


def _agree(
    logits: Array, routing: Routing, expected: Continuation, record: Callable[[str, object], None]
) -> None:
    """Same tokens and experts; same logits within rounding where no near tie fell differently."""
    difference = float(np.abs(logits - expected.logits).max())
    record("max_abs_difference", difference)
    notes = [*tokens_that_differ(logits, expected), *experts_that_differ(routing, expected)]
    for note in notes:
        record("near_tie", note)
    assert notes or difference <= FLOAT32_LOGITS


def test_token_by_token(
    watched: tuple[Engine, Routing],
    expected: Continuation,
    record_property: Callable[[str, object], None],
) -> None:
    engine, routing = watched
    routing.clear()
    logits = forced(engine.session(), expected)
    _agree(logits, routing, expected, record_property)


def test_as_one_prompt(
    watched: tuple[Engine, Routing],
    expected: Continuation,
    record_property: Callable[[str, object], None],
) -> None:
    engine, routing = watched
    routing.clear()
    logits = engine.session().logits(expected.passed)[-TOKENS:]
    _agree(logits, routing, expected, record_property)


@pytest.mark.parametrize("experts", [3, 5])
def test_another_number_of_experts_is_noticed(
    austen_store: Path, continuations: tuple[Continuation, ...], experts: int
) -> None:
    routing = Routing()
    with Engine.open(
        austen_store, budget=Budget(kv="f32"), experts_per_token=experts, observer=routing
    ) as engine:
        logits = forced(engine.session(), continuations[0])
    with pytest.raises(AssertionError):
        tokens_that_differ(logits, continuations[0])
    with pytest.raises(AssertionError):
        experts_that_differ(routing, continuations[0])


def test_after_a_snapshot(
    watched: tuple[Engine, Routing], expected: Continuation, tmp_path: Path
) -> None:
    """Something else is written in between; what follows the restore is as if it had not been."""
    engine, _ = watched
    session = engine.session()
    half = len(expected.prompt) + TOKENS // 2
    whole = engine.session().logits(expected.passed[:half]), session.logits(expected.passed[:half])
    assert np.array_equal(*whole)
    snapshot = session.snapshot()
    session.save(tmp_path / "session")
    straight = [session.logits([number]) for number in expected.passed[half:]]
    other = engine.session()
    other.logits(expected.prompt[:3])
    for saved in (False, True):
        other.logits(expected.ids[::-1])
        if saved:
            other.load(tmp_path / "session")
        else:
            other.restore(snapshot)
        again = [other.logits([number]) for number in expected.passed[half:]]
        assert np.array_equal(np.concatenate(again), np.concatenate(straight))
    found = np.concatenate([whole[0][len(expected.prompt) - 1 :], *straight])
    tokens_that_differ(found, expected)


def test_generate(
    watched: tuple[Engine, Routing],
    expected: Continuation,
    record_property: Callable[[str, object], None],
) -> None:
    """The public way: greedy sampling writes these tokens, up to a stop token or a near tie."""
    engine, _ = watched
    sampling = Sampling(temperature=0, max_tokens=TOKENS)
    found = [step.id for step in engine.session().generate(expected.prompt, sampling)]
    stops = [i for i, number in enumerate(expected.ids) if number in engine.stop_ids]
    assert len(found) == min([TOKENS, *(i + 1 for i in stops)])
    for step, number in enumerate(found):
        if number != expected.ids[step]:
            row = expected.logits[step]
            assert row[expected.ids[step]] - row[number] < NEAR_TIE
            record_property("near_tie", f"token {step}: {number} for {expected.ids[step]}")
            break
