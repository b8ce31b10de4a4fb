"""What the comparison with llama.cpp is made of, without llama.cpp."""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flashmoe.store.gguf_header import read_header
from flashmoe.store.published_files import OpenFiles
from tests.bench.conftest import BENCH, Load

GIB = 1 << 30
CGROUP = Path("/sys/fs/cgroup/memory")


def case_of(load: Load, *words: str) -> Any:
    cases = load("versus_cases")
    parser = argparse.ArgumentParser()
    cases.add_arguments(parser)
    return cases.case_of(parser, parser.parse_args(words))


def test_a_case_is_a_preset_that_flags_change(load: Load) -> None:
    case = case_of(load, "--case", "b-12g-top4", "--repeat", "5")
    assert (case.shape, case.layers, case.ram_bytes) == ("qwen3.5-397b-a17b", 8, 12 * GIB)
    assert (case.experts, case.repeat, case.cold) == (4, 5, True)
    assert [(peer.name, peer.read_ahead_kib) for peer in case.peers] == [
        ("tuned", 128), ("own read-ahead", None),
    ]  # fmt: skip
    in_ram = case_of(load, "--case", "a-ram")
    assert not in_ram.cold and [peer.repack for peer in in_ram.peers] == [True, False]
    assert case_of(load, "--case", "a-8g", "--ram", "none").ram_bytes is None
    assert case_of(load, "--case", "c-16g").peers == ()
    assert not any(one.prompts for one in (case, in_ram))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give a SHAPE or a --case"),
        (("tiny", "--case", "a-8g"), "leave out tiny"),
        (("tiny", "--ram", "much"), "'much' is not a size"),
        (("tiny", "--gen-tokens", "1"), "--gen-tokens: '1' is no whole number from 2"),
    ],
)
def test_a_case_that_makes_no_sense_is_refused(load: Load, capsys, words, message) -> None:
    with pytest.raises(SystemExit):
        case_of(load, *words)
    assert message in capsys.readouterr().err


def test_ways_and_their_batch_can_be_chosen(load: Load, capsys) -> None:
    words = ("--case", "a-8g-4096", "--way", "tuned", "--batch-tokens", "2048")
    (peer,) = case_of(load, *words).peers
    assert (peer.name, peer.read_ahead_kib, peer.batch_tokens) == ("tuned", 128, 2048)
    assert [peer.batch_tokens for peer in case_of(load, "--case", "a-8g-4096").peers] == [512] * 3
    with pytest.raises(SystemExit):
        case_of(load, "--case", "a-ram-512", "--way", "tuned")
    assert "--way: this work has repacked, mapped" in capsys.readouterr().err


def figures(speed: float, **more: Any) -> dict[str, Any]:
    return {"tg_tok_s": speed, "pp_tok_s": 10 * speed, "limit_tok_s": 8.0, **more}


def test_ratios_are_of_the_same_turn_and_shares_of_our_limit(load: Load) -> None:
    peer = {"read_ahead_kib": 128, "library": "0", "gen_tokens": 9}
    peer |= {"features": ["AVX2"], "build": "native", "batch_tokens": 512}
    runs = {
        "flashmoe": [figures(4.0), figures(6.0), figures(5.0)],
        "tuned": [figures(1.0, **peer), figures(2.0, **peer), figures(1.25, **peer)],
        "own": [figures(0.5, **peer)],
    }
    found = load("versus_llamacpp").summary(runs)
    assert found["flashmoe"]["tg_tok_s"] == 5 and found["flashmoe"]["share_of_limit"] == 5 / 8
    assert found["tuned"]["tg_tok_s_ratio"] == 4
    assert found["tuned"]["tg_tok_s_ratio_range"] == [3, 4]
    assert found["tuned"]["share_of_limit"] == 1.25 / 8
    assert found["own"]["tg_tok_s_ratio"] == 8  # of the first turn alone


def test_logits_of_two_models_are_told_apart(load: Load) -> None:
    runs = load("versus_runs")
    ours = np.random.default_rng(0).standard_normal((12, 500))
    near = ours + 0.01 * np.random.default_rng(1).standard_normal(ours.shape)
    found = runs.likeness(ours, near, 0.9)
    assert found["correlation"] > 0.999 and found["least_error"] == pytest.approx(0.01, abs=0.002)
    for other in (ours[::-1], np.roll(ours, 1, axis=1), np.full_like(ours, np.nan)):
        with pytest.raises(SystemExit, match="different functions"), np.errstate(all="ignore"):
            runs.likeness(ours, other, 0.9)


def test_weights_are_compared_bit_by_bit(load: Load, tmp_path: Path) -> None:
    store, gguf = tmp_path / "store", tmp_path / "model.gguf"
    script = [sys.executable, BENCH / "synthetic.py", "tiny", "--out", store, "--gguf", gguf]
    assert subprocess.run(script, capture_output=True).returncode == 0
    runs = load("versus_runs")
    assert runs.check_weights(store, gguf) == 12
    place = store / "layer-002.safetensors"
    at = runs.Store.open(store).record(2, 74 % 16)
    data = bytearray(place.read_bytes())
    data[at.offset] ^= 1
    place.write_bytes(data)
    with pytest.raises(SystemExit, match="gate of expert 10 in layer 2 differs"):
        runs.check_weights(store, gguf)


def test_the_bytes_of_experts_in_a_gguf_file_are_found(load: Load, tmp_path: Path) -> None:
    store, gguf = tmp_path / "store", tmp_path / "model.gguf"
    script = [sys.executable, BENCH / "synthetic.py", "tiny", "--out", store, "--gguf", gguf]
    assert subprocess.run(script, capture_output=True).returncode == 0
    runs = load("versus_runs")
    extents = runs.expert_extents(gguf)
    with closing(OpenFiles()) as files:
        tensors = read_header(files, gguf).tensors
    covered = {
        name
        for name, tensor in tensors.items()
        for start, size in extents
        if start <= tensor.offset and tensor.offset + tensor.nbytes <= start + size
    }
    assert covered == {name for name in tensors if "_exps." in name} and len(covered) == 12
    assert sum(size for _, size in extents) == sum(tensors[name].nbytes for name in covered)
    ends = [start + size for start, size in extents]
    assert all(end < start for end, (start, _) in zip(ends, extents[1:], strict=False))


def resident(mapped: mmap.mmap) -> list[bool]:
    """Which pages of a mapping of a file are in memory."""
    libc, found = ctypes.CDLL(None), (ctypes.c_ubyte * (len(mapped) // mmap.PAGESIZE))()
    start = ctypes.c_char.from_buffer(mapped)
    assert libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), found) == 0
    return [bool(state & 1) for state in found]


def test_parts_of_a_mapped_file_are_put_out_of_memory(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stub = SimpleNamespace(llama_cpp=SimpleNamespace(_lib=None))
    monkeypatch.setitem(sys.modules, "llama_cpp", stub)
    monkeypatch.delitem(sys.modules, "llamacpp_driver", raising=False)
    page, path = mmap.PAGESIZE, tmp_path / "weights"
    data = np.random.default_rng(0).bytes(64 * page)
    path.write_bytes(data)
    load("readahead").drop_pages([path])
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        if any(resident(mapped)):
            pytest.skip("this file system keeps its files in memory")
        assert mapped[:] == data and all(resident(mapped))
        load("llamacpp_driver").put_out(str(path), [(8 * page + 1, 16 * page), (40 * page, page)])
        gone = [number for number, there in enumerate(resident(mapped)) if not there]
        assert gone == [*range(9, 24), 40]
        assert mapped[:] == data
    monkeypatch.delitem(sys.modules, "llamacpp_driver")


def test_read_ahead_is_set_on_the_disk_and_put_back(load: Load, tmp_path: Path) -> None:
    module, number = load("readahead"), tmp_path.stat().st_dev
    disk = tmp_path / "devices" / "disk"
    (disk / "part1").mkdir(parents=True)
    (disk / "queue").mkdir()
    control = disk / "queue" / "read_ahead_kb"
    control.write_text("8192\n")
    devices = tmp_path / "block"
    devices.mkdir()
    (devices / f"{os.major(number)}:{os.minor(number)}").symlink_to(disk / "part1")
    with module.read_ahead(tmp_path, None, devices) as kib:
        assert kib == 8192
    with pytest.raises(KeyboardInterrupt), module.read_ahead(tmp_path, 128, devices) as kib:
        assert kib == 128 and control.read_text() == "128"
        raise KeyboardInterrupt
    assert control.read_text() == "8192"


def test_without_a_block_device_read_ahead_cannot_be_set(load: Load, tmp_path: Path) -> None:
    module = load("readahead")
    with module.read_ahead(tmp_path, None, tmp_path) as kib:
        assert kib is None
    with (
        pytest.raises(SystemExit, match="no block device"),
        module.read_ahead(tmp_path, 128, tmp_path),
    ):
        pass


def test_version_2_limits_memory_and_swap(load: Load, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory\n")
    group = tmp_path / f"flashmoe-bench-{os.getpid()}"
    made = Path.mkdir

    def mkdir(self: Path, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        (self / "memory.swap.max").touch()
        (self / "cgroup.procs").touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", lambda self: None)
    with load("confinement").Confinement(GIB, v1=tmp_path / "none", v2=tmp_path):
        assert (group / "memory.max").read_text() == str(GIB)
        assert (group / "memory.swap.max").read_text() == "0"


def test_no_controller_is_refused(load: Load, tmp_path: Path) -> None:
    confinement = load("confinement").Confinement(GIB, v1=tmp_path / "a", v2=tmp_path / "b")
    with pytest.raises(SystemExit, match="no memory cgroup can be made"), confinement:
        pass


def test_without_a_limit_commands_run_as_they_are(load: Load) -> None:
    with load("confinement").Confinement(None) as confined:
        assert confined.run([sys.executable, "-c", "print(7); raise SystemExit(3)"]) == (3, "7\n")


needs_cgroup = pytest.mark.skipif(
    not os.access(CGROUP / "cgroup.procs", os.W_OK)
    or not (CGROUP / "memory.limit_in_bytes").exists(),
    reason="needs root and a memory cgroup of version 1",
)


@needs_cgroup
def test_a_limit_holds_and_the_group_is_gone(load: Load) -> None:
    script = "data = bytearray(int(input_bytes)); print('had it')"
    with load("confinement").Confinement(96 << 20) as confined:
        (group,) = CGROUP.glob(f"flashmoe-bench-{os.getpid()}")
        small = confined.run([sys.executable, "-c", script.replace("input_bytes", "2e7")])
        large = confined.run([sys.executable, "-c", script.replace("input_bytes", "3e8")])
    assert small == (0, "had it\n") and large == (-signal.SIGKILL, "")
    assert not group.exists()


ENDED = """
import signal, sys
sys.path.insert(0, {bench!r})
import confinement
confinement.PATIENCE_S = 2.0
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
with confinement.Confinement(64 << 20) as confined:
    print("begun", flush=True)
    confined.run(["/bin/sh", "-c", "setsid sleep 60 & sleep 60"])
"""


def runs(pid: str) -> bool:
    """Whether a process is there, and no zombie that its new parent has yet to collect."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@needs_cgroup
def test_what_runs_inside_ends_with_the_bench() -> None:
    bench = subprocess.Popen(
        [sys.executable, "-c", ENDED.format(bench=str(BENCH))], stdout=subprocess.PIPE, text=True
    )
    assert bench.stdout is not None and bench.stdout.readline() == "begun\n"
    group = CGROUP / f"flashmoe-bench-{bench.pid}"
    end = time.monotonic() + 10
    while len(pids := (group / "cgroup.procs").read_text().split()) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    bench.send_signal(signal.SIGTERM)
    assert bench.wait(20) == 143
    assert not group.exists()
    assert not any(runs(pid) for pid in pids)


def test_the_driver_is_plain_python_of_another_environment() -> None:
    """It imports nothing of ours: its environment has llama.cpp and numpy alone."""
    text = (BENCH / "llamacpp_driver.py").read_text()
    compile(text, "driver", "exec")
    ours = {path.stem for path in BENCH.glob("*.py")} | {"flashmoe"}
    lines = [line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert not ours & {line.partition(".")[0] for line in lines}
