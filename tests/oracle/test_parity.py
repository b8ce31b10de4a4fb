"""Every family, published by transformers itself, gives transformers' logits in float64.

The way is the whole one: ``save_pretrained``, ``convert --bits 16``, engine, session. A prompt
goes through as one piece, in chunks that fall on, before and after the borders of the delta
rule's chunks of 64, token by token, and split between calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from flashmoe import Budget, Engine, Runtime
from flashmoe.quant import Array
from flashmoe.store.convert import convert
from tests.oracle import float64, tiny
from tests.tolerances import PARITY

pytestmark = pytest.mark.oracle

TOKENS = 150
CHUNKS = (1, 7, 64, 65, 128, 150)
SPLITS = ((97, 1, 52), (1, 63, 64, 22), (149, 1), (3, 1, 1, 1, 65, 79))
LLAMA = next(case for case in tiny.CASES if case.family == "llama")


@dataclass(frozen=True)
class Checked:
    """A store, a prompt, and what transformers answers to it."""

    store: Path
    ids: tuple[int, ...]
    expected: Array

    def difference(self, chunk_tokens: int, pieces: Sequence[int]) -> float:
        """Largest absolute difference of the logits, the prompt being passed in these pieces."""
        runtime = Runtime(chunk_tokens=chunk_tokens)
        with Engine.open(
            self.store,
            budget=Budget(kv="f32"),
            kernels="reference",
            dtype="float64",
            runtime=runtime,
        ) as engine:
            session = engine.session()
            ends = list(itertools.accumulate(pieces, initial=0))
            found = [session.logits(self.ids[a:b]) for a, b in itertools.pairwise(ends)]
        logits = np.concatenate(found)
        assert logits.shape == self.expected.shape and logits.dtype == np.float64
        return float(np.abs(logits - self.expected).max())


def check(case: tiny.Case, directory: Path) -> Checked:
    """Write the case's checkpoint, convert it, and ask transformers."""
    published = tiny.write(case, directory / "published")
    convert(published, directory / "store", bits=16, slices=case.slices)
    model = float64.load(published, case.family, case.causal)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, TOKENS)
    expected = float64.logits(model, ids.tolist())
    assert 0.5 < expected.std() < 2
    return Checked(directory / "store", tuple(ids.tolist()), expected)


@pytest.fixture(scope="module", params=tiny.CASES, ids=lambda case: str(case.id))
def checked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checked:
    return check(request.param, tmp_path_factory.mktemp("parity"))


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
def test_a_prompt_in_chunks(
    checked: Checked, chunk_tokens: int, record_property: Callable[[str, object], None]
) -> None:
    difference = checked.difference(chunk_tokens, (TOKENS,))
    record_property("max_abs_difference", difference)
    assert difference <= PARITY


@pytest.mark.parametrize("pieces", SPLITS, ids=str)
def test_a_prompt_and_its_continuation(checked: Checked, pieces: tuple[int, ...]) -> None:
    assert checked.difference(128, pieces) <= PARITY


@pytest.mark.parametrize("slices", [1, 2, 4, 8])
def test_a_dense_model_is_its_slices(slices: int, tmp_path: Path) -> None:
    sliced = check(replace(LLAMA, slices=slices), tmp_path)
    with Engine.open(
        sliced.store, budget=Budget(kv="f32"), kernels="reference", dtype="float64"
    ) as engine:
        assert engine.shape.experts.count == slices
    assert sliced.difference(128, (TOKENS,)) <= PARITY
