"""Devices by name, and the file of what was measured of them, whatever is in it."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from flashmoe.stream.device import LIMIT_BYTES, MAX_DEVICES, Depths, identity

HOSTILE = {
    "empty": b"",
    "no JSON": b"{",
    "a number": b"7",
    "another version": b'{"version": 2, "depths": {"disk": 4}}',
    "no depths": b'{"version": 1}',
    "depths are a list": b'{"version": 1, "depths": [4]}',
    "depth 0": b'{"version": 1, "depths": {"disk": 0}}',
    "depth 65": b'{"version": 1, "depths": {"disk": 65}}',
    "depth true": b'{"version": 1, "depths": {"disk": true}}',
    "depth 4.0": b'{"version": 1, "depths": {"disk": 4.0}}',
    "depth of 5000 digits": b'{"version": 1, "depths": {"disk": ' + b"9" * 5000 + b"}}",
    "no UTF-8": b"\xff\xfe",
    "deeply nested": b"[" * 100_000,
    "too large": b" " * (LIMIT_BYTES + 1),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "devices.json"


def test_what_was_kept_is_found_again_by_its_key(path: Path) -> None:
    assert Depths(path).get("disk") is None
    Depths(path).put("disk", 8)
    Depths(path).put("other", 2)
    Depths(path).put("disk", 16)
    assert Depths(path).get("disk") == 16 and Depths(path).get("other") == 2
    assert Depths(path).get("third") is None
    assert [file.name for file in path.parent.iterdir()] == ["devices.json"]


def test_without_a_path_nothing_is_kept() -> None:
    Depths(None).put("disk", 8)
    assert Depths(None).get("disk") is None


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_is_not_ours_is_empty_and_replaced(path: Path, content: bytes, caplog) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with caplog.at_level("INFO", "flashmoe"):
        assert Depths(path).get("disk") is None
    assert str(path) in caplog.text and "will be replaced" in caplog.text
    Depths(path).put("disk", 3)
    assert Depths(path).get("disk") == 3


def test_a_pipe_or_a_directory_in_its_place_does_no_harm(path: Path, caplog) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    assert Depths(path).get("disk") is None
    Depths(path).put("disk", 3)
    assert Depths(path).get("disk") == 3 and path.is_file()
    path.unlink()
    path.mkdir()
    with caplog.at_level("INFO", "flashmoe"):
        Depths(path).put("disk", 3)
    assert Depths(path).get("disk") is None and "is not kept" in caplog.text
    assert [file.name for file in path.parent.iterdir()] == ["devices.json"]


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level("INFO", "flashmoe"):
        Depths(tmp_path / "file" / "devices.json").put("disk", 3)
    assert "is not kept" in caplog.text


def test_the_latest_devices_are_kept(path: Path) -> None:
    path.parent.mkdir()
    depths = {f"disk {number}": 2 for number in range(MAX_DEVICES)}
    path.write_text(json.dumps({"version": 1, "depths": depths}))
    Depths(path).put("disk 1", 4)
    Depths(path).put("new", 8)
    kept = json.loads(path.read_text())["depths"]
    assert len(kept) == MAX_DEVICES
    assert "disk 0" not in kept and kept["disk 1"] == 4 and kept["new"] == 8


def write_often(path: Path, key: str) -> None:
    for number in range(200):
        Depths(path).put(key, 1 + number % 64)


def test_two_processes_never_leave_half_a_file(path: Path) -> None:
    path.parent.mkdir()
    Depths(path).put("first", 1)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(path, key)) for key in ("a", "b")]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        assert json.loads(path.read_text())["depths"]["first"] == 1
        seen += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen and [file.name for file in path.parent.iterdir()] == ["devices.json"]


def described(root: Path, numbers: str, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        file = root / "sys/dev/block" / numbers / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


def test_a_device_is_known_by_its_numbers_model_and_serial(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    root = tmp_path / "root"
    assert identity(tmp_path, root) == numbers
    files = {"device/model": b"Samsung  SSD\x00\n", "device/serial": b"S1\n", "wwid": b"eui.1\n"}
    described(root, numbers, files)
    assert identity(tmp_path, root) == f"{numbers} Samsung SSD S1 eui.1"
    (root / "sys/dev/block" / numbers / "wwid").write_bytes(b"\xff" * 5000)
    assert len(identity(tmp_path, root)) < 400


def test_a_partition_has_the_serial_of_its_disk(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    disk = tmp_path / "root/sys/devices/vda"
    (disk / "vda1").mkdir(parents=True)
    (disk / "serial").write_text("DISK7\n")
    block = tmp_path / "root/sys/dev/block"
    block.mkdir(parents=True)
    (block / numbers).symlink_to(disk / "vda1")
    assert identity(tmp_path, tmp_path / "root") == f"{numbers} DISK7"
