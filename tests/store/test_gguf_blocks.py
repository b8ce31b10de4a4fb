"""The exact mapping of Q4_0, Q4_1 and Q8_0; gguf's own dequantisation is the oracle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import quants

from flashmoe.errors import CheckpointError
from flashmoe.quant import Affine, dequantize
from flashmoe.store.gguf_file import GgufFile
from flashmoe.store.published_files import OpenFiles
from tests.store.small_checkpoints import BLOCK_BYTES, Q4_0, Q4_1, Q8_0, blocks, quantised

EXTREMES = [0.0, -0.0, 2.0**-24, -(2.0**-24), 2.0**-14, -1.5, 1e-3, 511.75, -511.75, 0.1]
BEYOND = [512.0, -8188.0, 8192.0, -65504.0, 65504.0]


@pytest.mark.parametrize("kind", BLOCK_BYTES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("extremes", [EXTREMES, EXTREMES + BEYOND], ids=["F16", "overflow"])
def test_every_value_equals_gguf_own_dequantisation(
    kind: Any, extremes: list[float], tmp_path: Path, files: OpenFiles
) -> None:
    rng = np.random.default_rng(3)
    random = rng.standard_normal((6, 5)).astype(np.float16)
    scales = np.concatenate([random, rng.choice(extremes, (40, 5)).astype(np.float16)])
    raw = blocks(kind, scales, 4)
    file = GgufFile(files, quantised(tmp_path / "m.gguf", kind, raw))
    expected = quants.dequantize(raw, kind)
    assert file.shape("w") == expected.shape == (46, 160)
    wide = kind != Q4_1 and extremes is not EXTREMES
    form = Affine(8 if kind == Q8_0 else 4, 32, "F32" if wide else "F16")
    assert file.form("w") == form
    for start, stop in [(0, 46), (0, 0), (7, 8), (11, 46)]:
        matrix = file.rows("w", start, stop)
        assert (matrix.form, matrix.shape) == (form, (stop - start, 160))
        read = dequantize(matrix)
        assert read.dtype == expected.dtype == np.float32
        np.testing.assert_array_equal(read, expected[start:stop])


@pytest.mark.parametrize(("kind", "most"), [(Q4_0, 8188.0), (Q8_0, 511.75)])
def test_scales_widen_exactly_where_a_bias_leaves_f16(
    kind: Any, most: float, tmp_path: Path, files: OpenFiles
) -> None:
    above = float(np.nextafter(np.float16(most), np.float16(np.inf)))
    for largest, name in ((most, "F16"), (-most, "F16"), (above, "F32"), (-above, "F32")):
        scales = np.full((300, 2), 0.5)
        scales[299, 1] = largest
        path = quantised(tmp_path / f"{largest}.gguf", kind, blocks(kind, scales, 0))
        form = GgufFile(files, path).form("w")
        assert isinstance(form, Affine)
        assert form.scales == name


@pytest.mark.parametrize("kind", BLOCK_BYTES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_not_finite_is_damage(
    kind: Any, bad: float, tmp_path: Path, files: OpenFiles
) -> None:
    scales = np.full((4, 2), 0.5)
    scales[2, 1] = bad
    file = GgufFile(files, quantised(tmp_path / "m.gguf", kind, blocks(kind, scales, 0)))
    with pytest.raises(CheckpointError, match="tensor 'w' has a scale that is NaN or infinite"):
        file.rows("w", 0, 4)
