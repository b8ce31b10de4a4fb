"""Reads of a GGUF file: plain tensors, the scan for wide scales, types that are not accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants

from flashmoe.errors import CheckpointError
from flashmoe.quant import Affine, Matrix, Plain
from flashmoe.store import gguf_file
from flashmoe.store.gguf_file import GgufFile
from flashmoe.store.published_files import OpenFiles
from tests.store.small_checkpoints import Q4_0, Q8_0, blocks, quantised, write_gguf


def test_the_scan_of_scales_is_done_once_and_in_pieces(
    tmp_path: Path, files: OpenFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales = np.full((64, 4), 0.5)
    scales[63, 3] = 600
    path = quantised(tmp_path / "m.gguf", Q8_0, blocks(Q8_0, scales, 0))
    file = GgufFile(files, path)
    monkeypatch.setattr(gguf_file, "WINDOW_BYTES", 10 * 4 * 34)
    sizes: list[int] = []
    honest = files.read

    def read(path: Path, offset: int, nbytes: int, what: str) -> Any:
        sizes.append(nbytes)
        return honest(path, offset, nbytes, what)

    monkeypatch.setattr(files, "read", read)
    assert file.form("w") == file.form("w") == Affine(8, 32, "F32")
    assert sizes == [10 * 4 * 34] * 6 + [4 * 4 * 34]


def test_plain_tensors_keep_type_shape_and_bits(tmp_path: Path, files: OpenFiles) -> None:
    rng = np.random.default_rng(0)
    single = rng.standard_normal((2, 3, 5)).astype(np.float32)
    half = rng.standard_normal(7).astype(np.float16)
    brain = quants.quantize(
        rng.standard_normal((3, 4)).astype(np.float32), GGMLQuantizationType.BF16
    )

    def fill(writer: GGUFWriter) -> None:
        writer.add_tensor("single", single)
        writer.add_tensor("half", half)
        writer.add_tensor("brain", brain, raw_dtype=GGMLQuantizationType.BF16)

    file = GgufFile(files, write_gguf(tmp_path / "m.gguf", fill))
    assert file.names() == ("single", "half", "brain")
    assert [file.form(name) for name in file.names()] == [Plain("F32"), Plain("F16"), Plain("BF16")]
    np.testing.assert_array_equal(file.values("single"), single)
    np.testing.assert_array_equal(file.values("half"), half)
    np.testing.assert_array_equal(file.values("brain").view(np.uint8), brain)
    rows: Matrix = file.rows("single", 2, 5)
    assert rows.shape == (3, 5)
    np.testing.assert_array_equal(rows.weight, single.reshape(6, 5)[2:5])
    assert file.rows("half", 0, 1).weight.shape == (1, 7)


def test_another_type_is_named_and_hurts_no_other_tensor(tmp_path: Path, files: OpenFiles) -> None:
    def fill(writer: GGUFWriter) -> None:
        raw = np.zeros((2, 144), np.uint8)
        writer.add_tensor("odd", raw, raw_dtype=GGMLQuantizationType.Q4_K)
        writer.add_tensor("fine", np.ones(3, np.float32))

    file = GgufFile(files, write_gguf(tmp_path / "m.gguf", fill))
    assert file.values("fine").tolist() == [1, 1, 1]
    for ask in (lambda: file.form("odd"), lambda: file.rows("odd", 0, 1)):
        with pytest.raises(
            CheckpointError, match=r"tensor 'odd' is of type Q4_K; accepted are F32"
        ):
            ask()


def test_a_quantised_tensor_has_no_plain_values(tmp_path: Path, files: OpenFiles) -> None:
    path = quantised(tmp_path / "m.gguf", Q4_0, blocks(Q4_0, np.ones((2, 2)), 0))
    with pytest.raises(CheckpointError, match="tensor 'w' is Q4_0 where plain numbers"):
        GgufFile(files, path).values("w")
