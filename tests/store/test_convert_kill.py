"""Conversions killed at any moment, and disks that fill up: nothing is lost, a rerun goes on.

A helper process imports the package once and forks a child for every kill, so that a hundred
kills take seconds.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flashmoe.errors import ConversionError, StoreError
from flashmoe.store.convert import Progress, convert
from flashmoe.store.layout import MANIFEST
from flashmoe.store.reader import Store
from flashmoe.store.verify import verify
from flashmoe.store.writer import PARTIAL
from tests import published as pub

KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from flashmoe.store.convert import convert

source, root = Path(sys.argv[1]), Path(sys.argv[2])
draw = random.Random(json.loads(sys.argv[3]))
CALLS = ("open", "pwrite", "write", "fsync", "replace", "unlink", "ftruncate", "mkdir", "close")

def counted(limit):
    # Every call that a conversion makes to change the disk; the process dies before, in the
    # middle of (a torn write), or after the one of number `limit`.
    made = [0]
    def wrap(name, call):
        def counting(*args, **kwargs):
            made[0] += 1
            if made[0] == limit:
                when = draw.choice(("before", "torn", "after"))
                if when == "torn" and name in ("pwrite", "write"):
                    call(args[0], bytes(args[1])[: draw.randrange(len(args[1]))], *args[2:])
                elif when == "after":
                    call(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return counting
    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))
    return made

def run(store, limit=None):
    made = counted(limit)
    convert(source, store)
    return made[0]

def child(work):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            answer = str(work()).encode()
            os.write(write, answer)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    return pid, read

def ended(pid, read):
    answer = os.read(read, 100)
    os.close(read)
    return os.waitpid(pid, 0)[1], answer

began = time.monotonic()
status, answer = ended(*child(lambda: run(root / "unkilled")))
assert status == 0, status
calls, seconds = int(answer), time.monotonic() - began
killed = []
by_clock = 0
while by_clock < 20 and len(killed) < 200:
    store = root / f"clock-{len(killed)}"
    began = time.monotonic()
    pid, read = child(lambda: run(store))
    time.sleep(draw.uniform(0, seconds))
    os.kill(pid, signal.SIGKILL)
    status = ended(pid, read)[0]
    killed.append((store.name, status))
    if status == signal.SIGKILL:
        by_clock += 1
    else:  # it was quicker than thought
        seconds = min(seconds, time.monotonic() - began)
for limit in sorted({*draw.sample(range(1, calls), 40), *range(calls - 12, calls + 1)}):
    store = root / f"call-{limit}"
    killed.append((store.name, ended(*child(lambda: run(store, limit)))[0]))
print(json.dumps(killed))
"""


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pub.qwen3_moe(num_hidden_layers=4).write(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store that nothing disturbed."""
    store = tmp_path_factory.mktemp("whole") / "store"
    convert(source, store)
    return contents(store)


def test_killed_at_any_moment(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLER, str(source), str(tmp_path), "11"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout)
    assert contents(tmp_path / "unkilled") == whole
    by_call = [status for name, status in killed if name.startswith("call")]
    assert len(by_call) > 40 and set(by_call) == {signal.SIGKILL}
    assert sum(status == signal.SIGKILL for name, status in killed if "clock" in name) == 20
    complete = 0
    for name, _ in killed:
        store = tmp_path / name
        if (store / MANIFEST).exists():  # then all of it is there, whatever the journal says
            assert {n: data for n, data in contents(store).items() if n in whole} == whole
            complete += 1
        elif store.exists():
            with pytest.raises(StoreError):
                Store.open(store)
        if (store / MANIFEST).exists() and not (store / "convert.journal").exists():
            with pytest.raises(ConversionError, match="complete store"):
                convert(source, store)
        else:
            convert(source, store)
        assert contents(store) == whole, name
    assert 0 < complete < len(killed)


def test_killed_over_and_over(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """One store, killed at each of its reports in turn, until it is complete."""
    store = tmp_path / "store"
    for limit in range(3, 10_000, 7):
        pid = os.fork()
        if pid == 0:
            _convert_until(source, store, limit)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            break
        assert status == signal.SIGKILL
    assert contents(store) == whole


def _convert_until(source: Path, store: Path, limit: int) -> None:
    """In a child: convert, and die at the report of number ``limit``. Does not return."""
    left = [limit]

    def watch(_: Progress) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        convert(source, store, progress=watch)
        os._exit(0)
    finally:
        os._exit(1)


class Disk:
    """A directory whose disk can be filled and freed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leave less than one record."""
        free = shutil.disk_usage(self.path).free
        self._filler.write_bytes(bytes(free - free % 4096))

    def free(self) -> None:
        self._filler.unlink()


class PretendedDisk(Disk):
    """Without the right to mount: writes fail as they would."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(path)
        self._patch = patch
        self._pwrite = os.pwrite

    def fill(self) -> None:
        def full(*_: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self._patch.setattr(os, "pwrite", full)

    def free(self) -> None:
        self._patch.setattr(os, "pwrite", self._pwrite)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A real small file system where this process may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "flashmoe-test", str(path)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        yield PretendedDisk(path, monkeypatch)
        return
    yield Disk(path)
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("when", ["trunk.safetensors", "layer-001.safetensors"])
def test_a_disk_that_fills_up(when: str, source: Path, whole: dict[str, bytes], disk: Disk) -> None:
    store = disk.path / "store"

    def watch(state: Progress) -> None:
        if state.what == when and not full:
            disk.fill()
            full.append(True)

    full: list[bool] = []
    with pytest.raises(ConversionError) as caught:
        convert(source, store, progress=watch)
    message = str(caught.value)
    assert full and f"{store / when}: the disk is full" in message
    assert "make room for" in message and "same command again" in message
    before = contents(store)
    assert not [name for name in before if name.endswith(PARTIAL)]
    assert {name: whole[name] for name in before if name in whole} == {
        name: data for name, data in before.items() if name in whole
    }
    disk.free()
    convert(source, store)
    assert contents(store) == whole
    assert not verify(store).faults


def test_a_limit_on_the_size_of_files(source: Path, tmp_path: Path) -> None:
    """As ``ulimit -f`` sets it: another error of the system, the same care."""
    store = tmp_path / "store"
    convert(source, tmp_path / "whole", bits=16, trunk_bits=2)
    whole = contents(tmp_path / "whole")
    script = (
        "import sys; from pathlib import Path; from flashmoe.store.convert import convert\n"
        "from flashmoe.errors import ConversionError\n"
        "try: convert(Path(sys.argv[1]), Path(sys.argv[2]), bits=16, trunk_bits=2)\n"
        "except ConversionError as error: sys.exit(str(error))\n"
    )
    layer = len(whole["layer-000.safetensors"])

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (layer - 1, layer - 1))

    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(store)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{store / 'layer-000.safetensors'}: the file would have {layer:,} bytes" in done.stderr
    assert (store / "trunk.safetensors").read_bytes() == whole["trunk.safetensors"]
    convert(source, store, bits=16, trunk_bits=2)
    assert contents(store) == whole
