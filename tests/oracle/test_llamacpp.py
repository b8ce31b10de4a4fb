"""llama.cpp computes from the GGUF of a synthetic store what we compute from the store.

It needs the environment that bench/versus_llamacpp.py builds (a quarter of an hour): in
build/llamacpp, or where FLASHMOE_LLAMACPP says.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.laws.sources import ROOT

ENVIRONMENT = Path(os.environ.get("FLASHMOE_LLAMACPP", ROOT / "build" / "llamacpp"))
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(
        not (ENVIRONMENT / "bin" / "python").exists(),
        reason=f"no llama.cpp in {ENVIRONMENT}: bench/versus_llamacpp.py builds it",
    ),
]


@pytest.fixture
def sides(tmp_path: Path) -> Any:
    """A tiny store, the same weights as GGUF, and both engines."""
    import synthetic_gguf
    import synthetic_shapes
    import synthetic_store
    import versus_cases
    import versus_runs

    store, gguf = tmp_path / "store", tmp_path / "model.gguf"
    shape = synthetic_shapes.model_shape("tiny")
    options = {"bits": 4, "distinct": 4, "skew": 0.0, "name": "tiny"}
    synthetic_store.write_store(store, shape, **options, tell=lambda line: None)
    synthetic_gguf.write_gguf(gguf, store, lambda line: None)
    case = versus_cases.Case("tiny", None, None, None, 8, 4, 1)
    return versus_runs.Sides(case, store, gguf, ENVIRONMENT / "bin" / "python")


@pytest.mark.parametrize("experts", [None, 2])
def test_both_compute_the_same_function(sides: Any, experts: int | None) -> None:
    from versus_runs import agreement

    found = agreement(replace(sides, case=replace(sides.case, experts=experts)))
    # llama.cpp rounds activations to 8 bits: 7e-3 a product (LESSONS), a few of them in a row.
    assert found["correlation"] > 0.99 and found["least_error"] < 0.05
    assert found["same_best"] > 0.6


def test_another_number_of_experts_is_another_function(sides: Any) -> None:
    from versus_runs import driver, run_json, shared_request

    def logits(experts: int | None) -> np.ndarray:
        case, file = replace(sides.case, experts=experts), sides.store / f"{experts}.npy"
        request = {"ids": [5, 6, 7], "logits": str(file)}
        request |= shared_request(replace(sides, case=case), False)
        run_json(driver(sides, request), None, "llama.cpp")
        return np.load(file)

    assert np.array_equal(logits(None), logits(4))  # tiny's own number
    assert np.corrcoef(logits(None).ravel(), logits(1).ravel())[0, 1] < 0.99


def test_heads_in_a_wrong_order_are_seen(sides: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import synthetic_gguf
    from versus_runs import agreement

    monkeypatch.setattr(synthetic_gguf, "_value_heads", lambda net: np.arange(net.value_heads))
    sides.gguf.unlink()
    synthetic_gguf.write_gguf(sides.gguf, sides.store, lambda line: None)
    with pytest.raises(SystemExit, match="different functions"):
        agreement(sides)


def test_figures_are_measured(sides: Any) -> None:
    from versus_cases import MAPPED
    from versus_runs import run_ours, run_peer

    theirs, ours = run_peer(sides, MAPPED), run_ours(sides)
    assert theirs["library"].count(".") == 2 and theirs["gen_tokens"] == 4
    for found in (theirs, ours):
        assert found["pp_tok_s"] > 0 and found["tg_tok_s"] > 0
