"""Bounded reads of files that others made: descriptors, ranges, strict JSON."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flashmoe.errors import CheckpointError
from flashmoe.store.published_files import OpenFiles, parse_object


def test_few_descriptors_serve_many_files(tmp_path: Path) -> None:
    files = OpenFiles(limit=3)
    before = len(os.listdir("/dev/fd"))
    for turn in range(2):
        for number in range(8):
            path = tmp_path / str(number)
            path.write_bytes(bytes([number + turn]))
            assert files.read(path, 0, 1, "it").tolist() == [number + turn]
            assert len(os.listdir("/dev/fd")) <= before + 3
    files.close()
    assert len(os.listdir("/dev/fd")) == before


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, files: OpenFiles) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        files.size(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("[1]", "not a JSON object"),
        ("", "not valid JSON"),
        ('{"a":NaN}', "not a finite number"),
        ('{"a":-Infinity}', "not a finite number"),
        ('{"a":1e400}', "not a finite number"),
        ('{"a":1,"a":2}', "'a' occurs twice"),
        ('{"a":"\\ud800"}', "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a":' + "9" * 5000 + "}", "not valid JSON"),
        ('{"a":1} {}', "not valid JSON"),
    ],
)
def test_json_is_strict(raw: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_object(raw, "config.json")


def test_json_keeps_every_finite_value() -> None:
    assert parse_object('{"a":[1,2.5,true,null,"\\u00e9\\ud83d\\ude00"]}', "x") == {
        "a": [1, 2.5, True, None, "\u00e9\U0001f600"]
    }
