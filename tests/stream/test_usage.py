"""The usage profile: counts, what is kept of them, and files that nobody of ours wrote."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.store.reader import locate
from flashmoe.stream import usage
from flashmoe.stream.usage import FILE, HALF_LIFE_TOKENS, LEAST_TOKENS, Usage

LAYERS, EXPERTS = 2, 4


def counted(tokens: int, layers: int = LAYERS, experts: int = EXPERTS) -> Usage:
    """In each layer expert 1 is chosen by every token, expert 2 by every second one."""
    found = Usage(layers, experts)
    for token in range(tokens):
        for layer in range(layers):
            found.note(layer, np.array([[1, 2]] if token % 2 else [[1, 0]]))
    return found


def test_counts_are_of_tokens_whatever_the_width_of_a_pass() -> None:
    one, wide = counted(20), Usage(LAYERS, EXPERTS)
    for layer in range(LAYERS):
        wide.note(layer, np.array([[1, 0], [1, 2]] * 10))
    assert one.tokens == wide.tokens == 20
    assert np.array_equal(one.counts(), wide.counts())
    assert one.shares().tolist() == [[0.5, 1, 0.5, 0]] * LAYERS


def test_many_tokens_are_counted_in_bounded_memory() -> None:
    found = Usage(1, EXPERTS)
    for _ in range(10_000):
        found.note(0, np.array([[1, 3]]))
        assert len(found._waiting[0]) <= usage._MANY + 2
    assert found.counts().tolist() == [[0, 10_000, 0, 10_000]]


def test_what_was_before_fades_with_the_tokens_since() -> None:
    now, earlier = Usage(1, 2), Usage(1, 2)
    now.note(0, np.zeros((HALF_LIFE_TOKENS, 1), np.int64))
    earlier.note(0, np.ones((100, 1), np.int64))
    now.add(earlier)
    assert now.counts().tolist() == [[HALF_LIFE_TOKENS, 50]]
    assert now.tokens == HALF_LIFE_TOKENS + 50


def test_a_run_is_added_to_what_is_kept(tmp_path: Path) -> None:
    assert usage.load(tmp_path, "it", LAYERS, EXPERTS) is None
    for runs in (1, 2):
        assert usage.save(tmp_path, "it", counted(LEAST_TOKENS))
        found = usage.load(tmp_path, "it", LAYERS, EXPERTS)
        assert found is not None
        assert found.tokens == pytest.approx(runs * LEAST_TOKENS, rel=0.01)
        assert np.allclose(found.shares(), [[0.5, 1, 0.5, 0]] * LAYERS, atol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_few_tokens_are_not_worth_a_file(tmp_path: Path) -> None:
    assert not usage.save(tmp_path, "it", counted(LEAST_TOKENS - 1))
    assert not list(tmp_path.iterdir())


def test_the_shipped_store_is_not_written_to() -> None:
    before = sorted(path.name for path in locate("demo").iterdir())
    assert not usage.save(locate("demo"), "it", counted(LEAST_TOKENS))
    assert sorted(path.name for path in locate("demo").iterdir()) == before


def test_a_directory_that_takes_no_file_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gone = tmp_path / "gone"
    assert not usage.save(gone, "it", counted(LEAST_TOKENS))
    assert f"{gone / FILE} is not written: No such file or directory" in caplog.text
    closed = Path("/proc/self/task")  # read-only even to root
    if closed.is_dir():
        assert not usage.save(closed, "it", counted(LEAST_TOKENS))
        assert f"{closed / FILE} is not written" in caplog.text


def text(**changes: object) -> str:
    found = json.loads(counted(LEAST_TOKENS).to_json("it"))
    return json.dumps({**found, **changes})


HOSTILE = {
    "not JSON": "no JSON at all",
    "deep": "[" * 100_000,
    "long number": "9" * 5000,
    "a list": "[]",
    "version": text(version=2),
    "another store": text(store="its neighbour"),
    "no tokens": text(tokens=None),
    "layers": text(chosen=[[0, 0, 0, 0]]),
    "experts": text(chosen=[[0, 0, 0]] * LAYERS),
    "rows": text(chosen=[0] * LAYERS),
    "negative": text(chosen=[[-1, 0, 0, 0]] * LAYERS),
    "no number": text(chosen=[["1", 0, 0, 0]] * LAYERS),
    "switch": text(chosen=[[True, 0, 0, 0]] * LAYERS),
    "nan": text(chosen=[[float("nan"), 0, 0, 0]] * LAYERS),
    "infinite": text(tokens=float("inf")),
    "huge": text(chosen=[[10**400, 0, 0, 0]] * LAYERS),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nonsense_is_ignored_with_a_word_and_written_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / FILE).write_text(HOSTILE[name])
    assert usage.load(tmp_path, "it", LAYERS, EXPERTS) is None
    assert f"{tmp_path / FILE} is not used, since" in caplog.text
    assert usage.save(tmp_path, "it", counted(LEAST_TOKENS))
    found = usage.load(tmp_path, "it", LAYERS, EXPERTS)
    assert found is not None and found.tokens == LEAST_TOKENS


def test_neither_bytes_nor_pipes_nor_giants_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / FILE
    path.write_bytes(b"\xff\xfe")
    assert usage.load(tmp_path, "it", LAYERS, EXPERTS) is None
    path.unlink()
    os.mkfifo(path)
    assert usage.load(tmp_path, "it", LAYERS, EXPERTS) is None
    path.unlink()
    path.write_bytes(b"")
    # Valid JSON, and far larger than any counts of so few experts.
    path.write_text("[" + "[]," * 1000 + "[]]")
    assert usage.load(tmp_path, "it", LAYERS, EXPERTS) is None
    path.unlink()
    path.mkdir()
    assert usage.load(tmp_path, "it", LAYERS, EXPERTS) is None
    assert not usage.save(tmp_path, "it", counted(LEAST_TOKENS))
    assert caplog.text.count("is not used") == 5 and "is not written" in caplog.text


def test_what_cannot_be_read_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    before = len(os.listdir("/dev/fd"))
    assert usage.load(tmp_path, "it", LAYERS, EXPERTS) is None
    assert len(os.listdir("/dev/fd")) == before


def test_a_directory_that_another_keeps_locked_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "PATIENCE_S", 0.05)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert not usage.save(tmp_path, "it", counted(LEAST_TOKENS))
    finally:
        os.close(descriptor)
    assert usage.save(tmp_path, "it", counted(LEAST_TOKENS))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
)


@given(changed=st.fixed_dictionaries({}, optional={"tokens": values, "chosen": values}))
def test_any_json_is_used_or_refused(changed: dict[str, object]) -> None:
    try:
        found = Usage.from_json(text(**changed), "it", LAYERS, EXPERTS)
    except ValueError:
        return
    assert np.isfinite(found.shares()).all()


WRITER = """
import sys
from pathlib import Path
from tests.stream.test_usage import counted
from flashmoe.stream import usage
print("ready", flush=True)
while True:
    usage.save(Path(sys.argv[1]), "it", counted(usage.LEAST_TOKENS, 64, 512))
"""


def test_killed_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    layers, experts = 64, 512
    assert usage.save(tmp_path, "it", counted(LEAST_TOKENS, layers, experts))
    last = LEAST_TOKENS
    for number in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            time.sleep(0.05 + 0.013 * number)
            process.send_signal(signal.SIGKILL)
        found = usage.load(tmp_path, "it", layers, experts)
        assert found is not None and found.tokens >= last
        last = found.tokens


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    once = WRITER.replace("while True:", "for _ in range(5):")
    command = [sys.executable, "-c", once, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    found = usage.load(tmp_path, "it", 64, 512)
    assert found is not None
    assert found.tokens == pytest.approx(10 * LEAST_TOKENS, rel=0.03)
