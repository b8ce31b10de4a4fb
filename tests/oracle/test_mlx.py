"""What mlx-lm quantised and saved is repacked without a second rounding; our quantiser is MLX's.

The published side is mlx-lm's own: its model class, its ``quantize_model``, its ``save_model``.
A store must hold the numbers that ``mx.dequantize`` gives in float32, and the engine's logits
must be those of transformers in float64 with these numbers for weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

import mlx.core as mx
from mlx_lm import utils as mlx_utils
from mlx_lm.convert import mixed_quant_predicate_builder
from transformers import Qwen3_5MoeTextConfig

from flashmoe import Budget, Engine, quant
from flashmoe.quant import AFFINE_BITS, FLOATS, GROUPS, Affine, Array
from flashmoe.store.convert import convert
from flashmoe.store.reader import Store
from tests.oracle import float64, tiny
from tests.tolerances import PARITY

pytestmark = pytest.mark.oracle
mx.set_default_device(mx.cpu)

IDS = np.random.default_rng(0).integers(0, 160, 150).tolist()
SOURCE = tiny.Case(
    "qwen3_5_moe",
    "mlx",
    {
        "hidden_size": 128,
        "shared_expert_intermediate_size": 128,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
        },
    },
    dtype="bfloat16",
    fused=True,
)
FAMILY = "qwen3_5_moe"
PLUS_ONE = ("layernorm.weight", "model.norm.weight", "q_norm.weight", "k_norm.weight")
"""Norms that MLX stores as 1 + w."""


def _by_layer(path: str, _: Any) -> dict[str, Any] | bool:
    """Another width for every kind of module, and one that is left as it was."""
    if path.endswith("down_proj"):
        return {"group_size": 32, "bits": 8}
    if "layers.3." in path:
        return {"group_size": 64, "bits": 5}
    if path.endswith(("in_proj_a", "in_proj_b")):
        return False
    return {"group_size": 64, "bits": 3}


@dataclass(frozen=True)
class Quantization:
    """One call of mlx-lm's ``quantize_model``; ``predicate`` a recipe's name or a function."""

    bits: int
    group: int
    dtype: str = "bfloat16"
    predicate: str | Callable[[str, Any], Any] | None = None
    tied: bool = False

    @property
    def id(self) -> str:
        """The name of the case in a report."""
        recipe = self.predicate
        name = recipe if isinstance(recipe, str) else recipe and "by-layer"
        parts = (f"{self.bits}bit", f"g{self.group}", self.dtype, name, self.tied and "tied")
        return "-".join(part for part in parts if part)


QUANTIZATIONS = (
    Quantization(4, 64),
    Quantization(8, 32),
    Quantization(3, 64, "float16"),
    Quantization(2, 64, "float32"),
    Quantization(4, 128),  # experts of 64 inputs do not divide, and stay bfloat16
    Quantization(6, 32, tied=True),
    Quantization(3, 64, predicate="mixed_3_6"),
    Quantization(2, 64, predicate="mixed_2_6"),
    Quantization(3, 64, "float32", predicate=_by_layer),
)


@dataclass(frozen=True)
class Repacked:
    """An MLX checkpoint's weights as mlx dequantises them, and the store made of the file."""

    weights: dict[str, Array]
    config: dict[str, Any]
    store: Path


def save(case: Quantization, directory: Path) -> Path:
    """Quantise a tiny model with mlx-lm and save it as its ``convert`` does."""
    source = replace(
        SOURCE, dtype=case.dtype, changes=SOURCE.changes | {"tie_word_embeddings": case.tied}
    )
    model, config = mlx_utils.load_model(tiny.write(source, directory / "published"))
    predicate = case.predicate
    if isinstance(predicate, str):
        predicate = mixed_quant_predicate_builder(predicate, model, case.group)
    model, config = mlx_utils.quantize_model(
        model, config, case.group, case.bits, quant_predicate=predicate
    )
    mlx_utils.save_model(directory / "mlx", model)
    mlx_utils.save_config(config, directory / "mlx" / "config.json")
    return directory / "mlx"


def numpy_of(array: Any) -> Array:
    """An mlx array as numpy; bfloat16 by way of float32, which holds it exactly."""
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def dequantized(path: Path) -> dict[str, Array]:
    """Every weight of an MLX checkpoint, dequantised by mlx in float32."""
    stored: Any = mx.load(str(path / "model.safetensors"))
    settings = json.loads((path / "config.json").read_text())["quantization"]
    weights: dict[str, Array] = {}
    for name, array in stored.items():
        module = name.removesuffix(".weight")
        if f"{module}.scales" in stored and name.endswith(".weight"):
            chosen = settings.get(module, settings)
            array = mx.dequantize(
                array,
                stored[f"{module}.scales"].astype(mx.float32),
                stored[f"{module}.biases"].astype(mx.float32),
                group_size=chosen["group_size"],
                bits=chosen["bits"],
            )
            assert array.dtype == mx.float32
        if not name.endswith((".scales", ".biases")):
            weights[name] = numpy_of(array).astype(np.float32)
    return weights


@pytest.fixture(scope="module", params=QUANTIZATIONS, ids=lambda case: str(case.id))
def repacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Repacked:
    directory = tmp_path_factory.mktemp("mlx")
    published = save(request.param, directory)
    convert(published, directory / "store")
    config = json.loads((published / "config.json").read_text())["text_config"]
    return Repacked(dequantized(published), config, directory / "store")


def test_every_weight_is_mlx_s_to_the_last_bit(
    repacked: Repacked, stored_weights: Callable[[Store], dict[str, Array]]
) -> None:
    found = stored_weights(Store.open(repacked.store))
    for name, expected in repacked.weights.items():
        ours = name.removeprefix("language_model.").removeprefix("model.")
        if ".switch_mlp." in ours:
            layer, projection = ours.split(".mlp.switch_mlp.")
            experts = [f"{layer}.experts.{e}.{projection}" for e in range(len(expected))]
            value = np.stack([found.pop(expert) for expert in experts])
        else:
            value = found.pop(ours).reshape(expected.shape)
        assert value.dtype == np.float32
        assert np.array_equal(value.view(np.uint32), expected.view(np.uint32)), name
    assert not found


def test_logits_follow_from_the_weights(
    repacked: Repacked, record_property: Callable[[str, object], None]
) -> None:
    config = Qwen3_5MoeTextConfig(**repacked.config)
    weights = _as_transformers(repacked.weights, tied=config.tie_word_embeddings)
    model = float64.build(config, FAMILY, "Qwen3_5MoeForCausalLM", weights)
    expected = float64.logits(model, IDS)
    with Engine.open(
        repacked.store, budget=Budget(kv="f32"), kernels="reference", dtype="float64"
    ) as engine:
        logits = engine.session().logits(IDS)
    difference = float(np.abs(logits - expected).max())
    record_property("max_abs_difference", difference)
    assert difference <= PARITY


@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, 32), (4, 64), (8, 64)])
def test_our_conversion_quantizes_like_mlx_lm(
    bits: int, group: int, tmp_path: Path, stored_weights: Callable[[Store], dict[str, Array]]
) -> None:
    """From the HF checkpoint itself; the router and the shared expert's gate stay at 8 bits."""
    case = Quantization(bits, group, predicate=partial(_as_ours, bits=bits, group=group))
    published = save(case, tmp_path)
    convert(tmp_path / "published", tmp_path / "store", bits=bits, group=group, trunk_bits=bits)
    found = stored_weights(Store.open(tmp_path / "store"))
    for name, expected in dequantized(published).items():
        ours = name.removeprefix("language_model.").removeprefix("model.")
        if expected.ndim < 2 or "conv1d" in name:
            continue
        if ".switch_mlp." in ours:
            layer, projection = ours.split(".mlp.switch_mlp.")
            value = np.stack([found[f"{layer}.experts.{e}.{projection}"] for e in range(16)])
        else:
            value = found[ours]
        assert np.array_equal(value.view(np.uint32), expected.view(np.uint32)), name


def _as_ours(path: str, _: Any, *, bits: int, group: int) -> dict[str, Any]:
    router = path.endswith(("mlp.gate", "shared_expert_gate"))
    return {"group_size": group, "bits": max(bits, 8) if router else bits}


def _as_transformers(weights: dict[str, Array], *, tied: bool) -> dict[str, Array]:
    """MLX's weights under transformers' names, in its layout and without the one in 1 + w."""
    renamed: dict[str, Array] = {}
    for name, array in weights.items():
        wide = array.astype(np.float64)
        if name.endswith(PLUS_ONE):
            wide = wide - 1
        if name.endswith("conv1d.weight"):
            wide = wide.swapaxes(1, 2)
        renamed[name.removeprefix("language_model.")] = wide
    for layer in [name for name in renamed if name.endswith("switch_mlp.gate_proj.weight")]:
        at = layer.removesuffix("switch_mlp.gate_proj.weight")
        gate, up, down = (
            renamed.pop(f"{at}switch_mlp.{part}_proj.weight") for part in ("gate", "up", "down")
        )
        renamed[f"{at}experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        renamed[f"{at}experts.down_proj"] = down
    if tied:
        renamed["lm_head.weight"] = renamed["model.embed_tokens.weight"]
    return renamed


def _groups(group: int) -> dict[str, Array]:
    """Weights (rows, 4 groups) of ordinary and of awkward kinds."""
    rng = np.random.default_rng(group)
    shape = (64, 4 * group)
    spike = np.zeros(shape)
    spike[np.arange(64), rng.integers(0, shape[1], 64)] = rng.normal(size=64)
    ends = rng.uniform(-1, 1, shape)
    ends[:, ::group], ends[:, 1::group] = 1, -1
    level = np.array([1, -1, 0.3, -0.3, 1e-8, -1e-8, 7, 1e-4] * 8)
    return {
        "normal": rng.normal(size=shape),
        "as trained": 0.02 * rng.normal(size=shape),
        "heavy tails": rng.standard_t(1.5, shape),
        "tiny": 1e-7 * rng.normal(size=shape),
        "all positive": rng.uniform(0.5, 1, shape),
        "all negative": -rng.uniform(0.5, 1, shape),
        "zero": np.zeros(shape),
        "negative zero": -np.zeros(shape),
        "all equal": np.broadcast_to(level[:, None], shape).copy(),
        "one outlier": spike,
        "min is -max": ends,
        "ties between codes": rng.integers(-8, 9, shape) / 8,
    }


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_quantize_is_mlx_s_bit_for_bit(bits: int, group: int, dtype: Any) -> None:
    kinds = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
    for name, values in _groups(group).items():
        given = mx.array(values.astype(np.float32)).astype(kinds[dtype])
        words, scales, biases = mx.quantize(given, group_size=group, bits=bits)
        ours = quant.quantize(_numpy_bits(given), Affine(bits, group, dtype))
        assert ours.scales is not None and ours.biases is not None
        assert np.array_equal(ours.weight, np.array(words)), name
        for found, expected in ((ours.scales, scales), (ours.biases, biases)):
            width = np.uint32 if dtype == "F32" else np.uint16
            assert np.array_equal(found.view(width), _numpy_bits(expected).view(width)), name
        wide = (scales.astype(mx.float32), biases.astype(mx.float32))
        again = np.array(mx.dequantize(words, *wide, group_size=group, bits=bits))
        assert np.array_equal(quant.dequantize(ours), again), name


def _numpy_bits(array: Any) -> Array:
    """An mlx array as numpy with the same bits."""
    if array.dtype == mx.bfloat16:
        return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.array(array)
