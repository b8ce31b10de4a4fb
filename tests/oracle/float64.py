"""transformers' own models in float64.

Owns the substitution that makes them so: the modeling sources compute norms, softmax, rotary
angles and the delta rule in float32 whatever the weights are, so a copy of the source with
float64 in its place is loaded beside the original. Nothing of the arithmetic is written here.

Invariant: no float32 is left on the way from ids to logits. Were one left, its 1e-7 would show
in every comparison at 1e-9.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from flashmoe.quant import Array

SUBSTITUTIONS = (
    (r"\btorch\.float(32)?\b", "torch.float64"),
    (r"\.float\(\)", ".double()"),
)
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
"""The grouped experts refuse float64."""


@cache
def modeling(model_type: str) -> ModuleType:
    """``transformers.models.<model_type>.modeling_<model_type>`` in float64."""
    name = f"transformers.models.{model_type}.modeling_{model_type}"
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None
    source = Path(found.origin).read_text(encoding="utf-8")
    for pattern, replacement in SUBSTITUTIONS:
        source = re.sub(pattern, replacement, source)
    assert "torch.float64" in source, f"{name} had no float32 to replace"
    spec = importlib.util.spec_from_loader(f"{name}_float64", loader=None, origin=found.origin)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = found.origin
    module.__package__ = name.rpartition(".")[0]
    sys.modules[module.__name__] = module
    code = compile(source, f"{found.origin} in float64", "exec", dont_inherit=True)
    exec(code, module.__dict__)
    return module


def load(path: Path, model_type: str, name: str) -> Any:
    """The class ``name`` with a saved checkpoint's weights, each the same number in float64."""
    made: Any = getattr(modeling(model_type), name)
    return made.from_pretrained(path, dtype=torch.float64, **EAGER).eval()


def build(config: Any, model_type: str, name: str, weights: Mapping[str, Array]) -> Any:
    """The class ``name`` with these weights, under the names of its own state dict."""
    made: Any = getattr(modeling(model_type), name)
    for key, value in EAGER.items():
        setattr(config, f"_{key}", value)
    model = made(config).double().eval()
    model.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    return model


def logits(model: Any, ids: Sequence[int]) -> Array:
    """Logits of a prompt, (T, vocabulary) in float64."""
    with torch.no_grad():
        y = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    assert y.dtype == torch.float64
    return np.asarray(y)
