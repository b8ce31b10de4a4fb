"""Opening published checkpoints: kinds, rows, values, the fingerprint, what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.numpy import save_file

from flashmoe.errors import CheckpointError, InputError
from flashmoe.quant import Matrix, Plain
from flashmoe.store.checkpoint import PublishedTensor, open_checkpoint
from tests.store.small_checkpoints import publish, same, weights, write_gguf


def test_plain_tensors_come_out_as_published(tmp_path: Path) -> None:
    stacked = weights(3, 4, 8).astype(ml_dtypes.bfloat16)
    norm = weights(8).astype(np.float16)
    scalar = np.array(2.5, np.float32)
    config = {"model_type": "mixtral", "hidden_size": 8}
    path = publish(tmp_path, {"e": stacked, "norm": norm, "scale": scalar}, config)
    with open_checkpoint(path) as checkpoint:
        assert (checkpoint.kind, checkpoint.path, checkpoint.fields) == ("safetensors", path, {})
        assert checkpoint.config == config
        assert set(checkpoint.tensors) == {"e", "norm", "scale"}
        assert checkpoint.tensors["e"] == PublishedTensor("e", Plain("BF16"), (3, 4, 8))
        same(
            checkpoint.rows("e", 3, 9),
            Matrix(Plain("BF16"), (6, 8), stacked.reshape(12, 8)[3:9]),
        )
        same(checkpoint.rows("norm", 0, 1), Matrix(Plain("F16"), (1, 8), norm[None]))
        same(checkpoint.rows("scale", 0, 1), Matrix(Plain("F32"), (1, 1), scalar.reshape(1, 1)))
        np.testing.assert_array_equal(checkpoint.values("e"), stacked)
        assert checkpoint.values("norm").dtype == np.float16
        assert checkpoint.values("scale").shape == ()


def test_rows_reads_only_its_rows(tmp_path: Path) -> None:
    path = publish(tmp_path, {"w": weights(100, 8)})
    with open_checkpoint(path) as checkpoint:
        os.truncate(path / "model.safetensors", os.path.getsize(path / "model.safetensors") - 32)
        np.testing.assert_array_equal(checkpoint.rows("w", 40, 99).weight, weights(100, 8)[40:99])
        with pytest.raises(CheckpointError, match=r"model\.safetensors ends .* tensor 'w'"):
            checkpoint.rows("w", 99, 100)


@pytest.mark.parametrize("rows", [(-1, 2), (2, 1), (0, 5), (5, 6)])
def test_rows_outside_the_tensor_are_refused(rows: tuple[int, int], tmp_path: Path) -> None:
    with (
        open_checkpoint(publish(tmp_path, {"w": weights(4, 8)})) as checkpoint,
        pytest.raises(InputError, match="tensor 'w': it has 4"),
    ):
        checkpoint.rows("w", *rows)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    with open_checkpoint(publish(tmp_path, {"w": weights(4, 8)})) as checkpoint:
        assert "v" not in checkpoint.tensors
        assert checkpoint.tensors.get("v") is None
        for ask in (lambda: checkpoint.rows("v", 0, 1), lambda: checkpoint.values("v")):
            with pytest.raises(CheckpointError, match="has no tensor 'v'"):
                ask()


def test_a_type_that_cannot_be_stored_is_an_error_only_when_asked_for(tmp_path: Path) -> None:
    tensors = {"w": weights(4, 8), "ids": np.arange(3), "words": np.zeros((2, 2), np.uint32)}
    path = publish(tmp_path, tensors)
    raw = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(raw.replace(b'"U32"', b'"Q99"'))
    with open_checkpoint(path) as checkpoint:
        assert {"w", "ids", "words"} == set(checkpoint.tensors)
        assert "ids" in checkpoint.tensors
        assert checkpoint.values("ids").tolist() == [0, 1, 2]
        with pytest.raises(CheckpointError, match="tensor 'ids' is of type I64; accepted are"):
            _ = checkpoint.tensors["ids"]
        with pytest.raises(CheckpointError, match="tensor 'words' is of type Q99"):
            checkpoint.rows("words", 0, 1)
        with pytest.raises(CheckpointError, match="tensor 'words' is of type Q99"):
            checkpoint.values("words")


def test_the_fingerprint_follows_content_and_not_place(tmp_path: Path) -> None:
    def fingerprint(path: Path) -> str:
        with open_checkpoint(path) as checkpoint:
            return checkpoint.fingerprint()

    first = publish(tmp_path / "first", {"w": weights(4, 8)})
    second = shutil.copytree(first, tmp_path / "second")
    assert fingerprint(first) == fingerprint(second)
    seen = {fingerprint(first)}
    publish(second, {"v": weights(4, 8)})
    seen.add(fingerprint(second))
    publish(second, {"w": weights(8, 4)})
    seen.add(fingerprint(second))
    publish(second, {"w": weights(4, 8)}, {"model_type": "qwen3_moe"})
    seen.add(fingerprint(second))
    publish(second, {"w": weights(4, 8)})
    (second / "model.safetensors").rename(second / "renamed.safetensors")
    seen.add(fingerprint(second))
    assert len(seen) == 5


def write_small_gguf(path: Path) -> Path:
    def fill(writer: GGUFWriter) -> None:
        writer.add_block_count(3)
        writer.add_tensor("w", np.ones((2, 4), np.float32))

    return write_gguf(path, fill)


def test_a_gguf_opens_by_file_and_by_directory(tmp_path: Path) -> None:
    file = write_small_gguf(tmp_path / "m.gguf")
    prints = set()
    for path in (file, tmp_path):
        with open_checkpoint(path) as checkpoint:
            assert (checkpoint.kind, checkpoint.path, checkpoint.config) == ("gguf", path, {})
            assert checkpoint.fields["general.architecture"] == "llama"
            assert checkpoint.fields["llama.block_count"] == 3
            assert checkpoint.text_files == {}
            assert checkpoint.tensors["w"] == PublishedTensor("w", Plain("F32"), (2, 4))
            assert checkpoint.rows("w", 1, 2).weight.tolist() == [[1, 1, 1, 1]]
            assert checkpoint.values("w").shape == (2, 4)
            prints.add(checkpoint.fingerprint())
            with pytest.raises(InputError):
                checkpoint.rows("w", 0, 3)
    assert len(prints) == 1


def test_several_ggufs_want_a_choice(tmp_path: Path) -> None:
    write_small_gguf(tmp_path / "a.gguf")
    write_small_gguf(tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"give one of a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)


def test_a_place_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist: check the path"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors"):
        open_checkpoint(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="give the directory"):
        open_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        open_checkpoint(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        open_checkpoint(tmp_path / ("n" * 300))


def test_nothing_stays_open(tmp_path: Path) -> None:
    path = publish(tmp_path, {"w": weights(2, 2)})
    before = sorted(os.listdir("/dev/fd"))
    with open_checkpoint(path) as checkpoint:
        checkpoint.rows("w", 0, 1)
    (path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError):
        open_checkpoint(path)
    assert sorted(os.listdir("/dev/fd")) == before


def test_a_store_or_another_directory_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        open_checkpoint(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a store already"):
        open_checkpoint(tmp_path)
