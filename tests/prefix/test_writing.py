"""The writer: everything arrives, and a disk that refuses ends it without a fuss."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from flashmoe.prefix.directory import Directory
from flashmoe.prefix.memory import Memory
from flashmoe.prefix.writing import Writing

MODEL = "0123456789abcdef-f32"


def name(number):
    return f"block-{number:032x}"


@pytest.fixture
def parts(tmp_path):
    memory, directory = Memory(1000), Directory(tmp_path, MODEL, 10_000)
    writing = Writing(memory, directory)
    yield memory, directory, writing
    writing.close()


def give(memory, writing, number, size=300):
    piece = memory.take(size)
    piece[:] = number
    memory.keep(name(number), piece, waiting=True)
    writing.add(name(number), ())


def test_more_than_the_memory_holds_arrives_whole(parts):
    memory, directory, writing = parts
    for number in range(20):
        give(memory, writing, number)
    writing.flush()
    assert sorted(directory.names()) == [name(number) for number in range(20)]
    assert directory.written_bytes == 6000
    out = np.zeros(300, np.uint8)
    assert directory.read(name(7), out) and (out == 7).all()


def test_closing_writes_what_waits(parts):
    memory, directory, writing = parts
    give(memory, writing, 1)
    give(memory, writing, 2)
    writing.close()
    assert len(directory.names()) == 2
    writing.close()
    for number in range(3, 10):
        give(memory, writing, number)  # must not wait for room
    assert len(directory.names()) == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("odd")])
def test_a_refusal_is_logged_once_and_nobody_waits_for_ever(parts, caplog, monkeypatch, error):
    memory, directory, writing = parts

    def refuse(*_):
        raise error

    monkeypatch.setattr(directory, "write", refuse)
    with caplog.at_level(logging.WARNING):
        for number in range(10):
            give(memory, writing, number)  # must not wait for room
        writing.flush()
    assert writing.refused and directory.names() == []
    (record,) = caplog.records
    assert "stops writing" in record.getMessage()
    assert memory.used_bytes <= 1000


FULL = """
import resource, sys
from pathlib import Path
from flashmoe.prefix.directory import Directory
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import numpy as np
here = Directory(Path(sys.argv[1]), sys.argv[2], 10_000)
here.write("block-" + "0" * 32, np.zeros(900, np.uint8), frozenset())
try:
    here.write("block-" + "1" * 32, np.zeros(1100, np.uint8), frozenset())
except OSError as error:
    print(error.errno)
"""


def test_a_write_that_the_system_cuts_short_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), MODEL],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert int(done.stdout) == 27  # EFBIG
    assert [path.name for path in (tmp_path / MODEL).iterdir()] == [f"block-{'0' * 32}.prefix"]
