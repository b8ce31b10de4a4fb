"""MLX's weight, scales and biases as one tensor, and the config that must agree with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashmoe.errors import CheckpointError
from flashmoe.quant import Affine, Array, FloatName, Matrix, Plain, dequantize, quantize
from flashmoe.store.checkpoint import PublishedTensor, open_checkpoint
from tests.store.small_checkpoints import Json, publish, same, weights


def triple(module: str, matrix: Matrix, lead: tuple[int, ...] | None = None) -> dict[str, Array]:
    """A quantised matrix as MLX's three tensors, its rows split over ``lead`` dimensions."""
    assert matrix.scales is not None and matrix.biases is not None
    names = zip(("weight", "scales", "biases"), matrix.arrays(), strict=True)
    shape = lead or matrix.shape[:1]
    return {f"{module}.{part}": array.reshape(*shape, -1) for part, array in names}


def mlx(directory: Path, tensors: dict[str, Array], **overrides: Any) -> Path:
    settings = {"group_size": 64, "bits": 4, "mode": "affine"} | overrides
    config = {
        "model_type": "qwen3_5_moe",
        "quantization": settings,
        "quantization_config": settings,
    }
    return publish(directory, tensors, config, by="mlx")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("scales", ["BF16", "F16", "F32"])
def test_an_mlx_triple_is_one_tensor(bits: int, scales: FloatName, tmp_path: Path) -> None:
    form = Affine(bits, 32, scales)
    matrix = quantize(weights(6, 96), form)
    tensors = triple("a.switch_mlp.up_proj", matrix, (3, 2)) | {"norm.weight": weights(96)}
    with open_checkpoint(mlx(tmp_path, tensors, bits=bits, group_size=32)) as checkpoint:
        assert checkpoint.kind == "mlx"
        assert set(checkpoint.tensors) == {"a.switch_mlp.up_proj.weight", "norm.weight"}
        name = "a.switch_mlp.up_proj.weight"
        assert checkpoint.tensors[name] == PublishedTensor(name, form, (3, 2, 96))
        assert checkpoint.tensors["norm.weight"].form == Plain("F32")
        same(checkpoint.rows(name, 0, 6), matrix)
        same(checkpoint.rows(name, 3, 5), matrix.rows(slice(3, 5)))
        np.testing.assert_array_equal(
            dequantize(checkpoint.rows(name, 1, 4)), dequantize(matrix)[1:4]
        )
        with pytest.raises(CheckpointError, match="is quantised where plain numbers"):
            checkpoint.values(name)


def test_mlx_overrides_decide_by_module(tmp_path: Path) -> None:
    four, eight = Affine(4, 64), Affine(8, 32)
    tensors = (
        triple("mlp.gate", quantize(weights(4, 64), eight))
        | triple("mlp.up", quantize(weights(4, 64), four))
        | triple("head", quantize(weights(4, 64), four))
        | {"plain.weight": weights(4, 64)}
    )
    overrides: Json = {
        "mlp.gate": {"bits": 8, "group_size": 32},
        "head": True,
        "plain": False,
        "mtp.dropped": {"bits": 8, "group_size": 64},
    }
    with open_checkpoint(mlx(tmp_path, tensors, **overrides)) as checkpoint:
        forms = {name: tensor.form for name, tensor in checkpoint.tensors.items()}
    assert forms == {
        "mlp.gate.weight": eight,
        "mlp.up.weight": four,
        "head.weight": four,
        "plain.weight": Plain("F32"),
    }


def test_mlx_is_known_by_either_section_or_by_its_writer(tmp_path: Path) -> None:
    tensors = triple("m", quantize(weights(4, 64), Affine(4, 64)))
    config = {"quantization_config": {"group_size": 64, "bits": 4}}
    with open_checkpoint(publish(tmp_path / "old", tensors, config)) as checkpoint:
        assert checkpoint.kind == "mlx"
        assert checkpoint.tensors["m.weight"].form == Affine(4, 64)
    plain = publish(tmp_path / "plain", {"w": weights(2, 2)}, by="mlx")
    with open_checkpoint(plain) as checkpoint:
        assert checkpoint.kind == "mlx"


def without(tensors: dict[str, Array], part: str) -> dict[str, Array]:
    return {name: array for name, array in tensors.items() if not name.endswith(part)}


GOOD = triple("m", quantize(weights(4, 128), Affine(4, 64)))
DISAGREEMENTS: dict[str, tuple[dict[str, Array], Json, str]] = {
    "bits": (GOOD, {"bits": 8}, r"tensor 'm\.weight' has 4 bits by its shape .* but 8 by config"),
    "override": (GOOD, {"m": {"bits": 2, "group_size": 64}}, r"4 bits by its shape .* but 2"),
    "group": (GOOD, {"group_size": 32}, r"'m\.weight' has 8 bits by its shape .* of 32\), but 4"),
    "not quantised": (GOOD, {"m": False}, r"'m' is not quantised, but .* holds 'm\.scales'"),
    "no scales": ({"m.weight": weights(4, 64)}, {"m": True}, r"'m' has 4 bits, but .* holds no"),
    "no biases": (without(GOOD, "biases"), {}, "not U32 with biases"),
    "no weight": (without(GOOD, "weight"), {}, "not U32 with biases"),
    "plain weight": (GOOD | {"m.weight": weights(4, 16)}, {}, "not U32 with biases"),
    "scales of U8": (GOOD | {"m.scales": np.zeros((4, 2), np.uint8)}, {}, "must agree"),
    "biases shorter": (GOOD | {"m.biases": GOOD["m.biases"][:, :1].copy()}, {}, "must agree"),
    "rows": (
        GOOD | {"m.weight": GOOD["m.weight"][:3].copy()},
        {},
        "words .3, 16. but scales .4, 2",
    ),
    "flat": ({name: array[0].copy() for name, array in GOOD.items()}, {}, "words .16,. but scales"),
    "no groups": ({name: array[:, :0].copy() for name, array in GOOD.items()}, {}, "but scales"),
    "mode": (GOOD, {"mode": "mxfp4"}, "mode 'mxfp4'; only MLX's affine"),
    "mode of a module": (
        GOOD,
        {"m": {"bits": 4, "group_size": 16, "mode": "nvfp4"}},
        "quantization of 'm' has mode 'nvfp4'",
    ),
    "7 bits": (GOOD, {"bits": 7}, "bits 7; accepted are"),
    "true bits": (GOOD, {"bits": True}, "bits True; accepted are"),
    "text bits": (GOOD, {"bits": "4"}, "bits '4'; accepted are"),
    "group 48": (GOOD, {"group_size": 48}, "group_size 48; accepted are"),
    "half an override": (GOOD, {"m": {"bits": 4}}, "group_size None; accepted are"),
    "unknown setting": (GOOD, {"smoothing": 3}, "quantization of 'smoothing' is 3; known are"),
    "unknown in override": (GOOD, {"m": {"zero": 1}}, "quantization of 'm' is"),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_mlx_tensors_that_contradict_the_config_are_refused(case: str, tmp_path: Path) -> None:
    tensors, settings, message = DISAGREEMENTS[case]
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(mlx(tmp_path, tensors, **settings))


@pytest.mark.parametrize("method", ["fp8", "gptq", "awq", "compressed-tensors", "mxfp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_other_quantisations_are_named_with_what_is_accepted(
    method: str, nested: bool, tmp_path: Path
) -> None:
    section: Json = {"quantization_config": {"quant_method": method, "bits": 4, "group_size": 64}}
    config = {"text_config": section} if nested else section
    with pytest.raises(CheckpointError, match=f"'{method}' is not supported; accepted are safet"):
        open_checkpoint(publish(tmp_path, {"w": weights(2, 2)}, config))


@pytest.mark.parametrize("section", [3, "4-bit", [4, 64], {}, {"load_in_4bit": True}])
def test_a_quantization_section_of_another_kind_is_refused(section: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: quantization"):
        open_checkpoint(publish(tmp_path, {"w": weights(2, 2)}, {"quantization": section}))
