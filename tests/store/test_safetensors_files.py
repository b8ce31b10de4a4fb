"""Which safetensors files there are: the index, its tricks, and directories without one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from flashmoe.errors import CheckpointError
from flashmoe.store.published_files import OpenFiles
from flashmoe.store.safetensors_files import INDEX, open_shards


def shard(directory: Path, name: str, tensors: list[str]) -> None:
    save_file({key: np.ones(2, np.float32) for key in tensors}, directory / name)


def index(directory: Path, weight_map: Any) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_the_index_decides_which_shard_holds_a_tensor(tmp_path: Path, files: OpenFiles) -> None:
    shard(tmp_path, "one.safetensors", ["a", "stale"])
    shard(tmp_path, "two.safetensors", ["b", "a"])
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    shards = open_shards(files, tmp_path)
    assert {name: at.path.name for name, at in shards.tensors.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


def test_a_missing_shard_and_a_missing_tensor_are_named(tmp_path: Path, files: OpenFiles) -> None:
    shard(tmp_path, "one.safetensors", ["a"])
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(CheckpointError, match=r"two\.safetensors is missing"):
        open_shards(files, tmp_path)
    shard(tmp_path, "two.safetensors", ["c"])
    with pytest.raises(CheckpointError, match=r"two\.safetensors lacks tensor 'b'"):
        open_shards(files, tmp_path)


TRICKS = [
    "../outside.safetensors",
    "/etc/passwd",
    "/abs.safetensors",
    "sub/one.safetensors",
    "sub\\one.safetensors",
    "..",
    "",
    "one.safetensors\n",
    "one\0.safetensors",
    "one.bin",
    "C:one.safetensors",
    "n" * 300 + ".safetensors",
    7,
    None,
    ["one.safetensors"],
]


@pytest.mark.parametrize("trick", TRICKS, ids=repr)
def test_a_shard_name_cannot_leave_the_directory(
    trick: Any, tmp_path: Path, files: OpenFiles
) -> None:
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    for directory in (tmp_path, inside, inside / "sub"):
        shard(directory, "outside.safetensors", ["a"])
        shard(directory, "one.safetensors", ["a"])
    index(inside, {"a": trick})
    with pytest.raises(CheckpointError, match="not a plain"):
        open_shards(files, inside)


def test_a_symlink_out_of_the_directory_is_followed(tmp_path: Path, files: OpenFiles) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    shard(blobs, "0a1b", ["a"])
    (snapshot / "one.safetensors").symlink_to(Path("..") / ".." / "blobs" / "0a1b")
    index(snapshot, {"a": "one.safetensors"})
    assert list(open_shards(files, snapshot).tensors) == ["a"]


@pytest.mark.parametrize("weight_map", [None, {}, [], "a", 3])
def test_an_index_without_a_weight_map_is_refused(
    weight_map: Any, tmp_path: Path, files: OpenFiles
) -> None:
    index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match="no weight_map"):
        open_shards(files, tmp_path)


def test_without_an_index_every_file_counts(tmp_path: Path, files: OpenFiles) -> None:
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors"):
        open_shards(files, tmp_path)
    shard(tmp_path, "part-00001-of-00002.safetensors", ["a"])
    with pytest.raises(CheckpointError, match="holds 1 of the 2 files"):
        open_shards(files, tmp_path)
    shard(tmp_path, "part-00002-of-00002.safetensors", ["b"])
    assert set(open_shards(files, tmp_path).tensors) == {"a", "b"}
    shard(tmp_path, "other.safetensors", ["b"])
    with pytest.raises(CheckpointError, match=r"'b' is in other\.safetensors and in part-00002"):
        open_shards(files, tmp_path)
    shard(tmp_path, "model.safetensors", ["only"])
    assert list(open_shards(files, tmp_path).tensors) == ["only"]


def test_a_file_cut_while_open_is_a_short_read_that_names_the_tensor(
    tmp_path: Path, files: OpenFiles
) -> None:
    shard(tmp_path, "model.safetensors", ["a"])
    at = open_shards(files, tmp_path).tensors["a"]
    os.truncate(at.path, at.offset + 5)
    with pytest.raises(CheckpointError, match=r"model\.safetensors ends .* inside tensor 'a'"):
        files.read(at.path, at.offset, at.nbytes, "tensor 'a'")
