"""``convert`` and ``verify``: flags, progress, the last line, and faults."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flashmoe.apps import progress
from flashmoe.store.convert import Progress
from flashmoe.store.layout import layer_file
from flashmoe.store.reader import Store
from flashmoe.stream.units import format_bytes
from tests.apps.conftest import Command
from tests.published import llama, qwen3_5_moe


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of eight experts, and a vision tower that a conversion skips."""
    return qwen3_5_moe().write(tmp_path_factory.mktemp("published") / "small")


def test_the_last_line_has_records_bytes_and_seconds(command: Command, checkpoint, tmp_path):
    result = command("convert", checkpoint, tmp_path / "store")
    assert result.code == 0
    nbytes = sum(Store.open(tmp_path / "store").file_sizes().values())
    assert result.out.startswith(f"{tmp_path / 'store'}: 32 records, {format_bytes(nbytes)}, ")
    assert result.out.endswith(" s\n") and result.out.count("\n") == 1
    assert "skipped model.visual.patch_embed.proj.weight" in result.err, "what is left out is told"


@pytest.mark.parametrize(
    "flags, wanted",
    [
        ((), {"bits": 4, "group": 64, "trunk_bits": 4, "slices": None}),
        (("--bits", 2), {"bits": 2, "group": 64, "trunk_bits": 4, "slices": None}),
        (("--bits", 8, "--group", 32), {"bits": 8, "group": 32, "trunk_bits": 8, "slices": None}),
        (("--trunk-bits", 8), {"bits": 4, "group": 64, "trunk_bits": 8, "slices": None}),
    ],
)
def test_flags_decide_the_formats(command: Command, checkpoint, tmp_path, flags, wanted):
    assert command("convert", checkpoint, tmp_path / "store", *flags).code == 0
    found = Store.open(tmp_path / "store").manifest.conversion
    assert {name: found[name] for name in wanted} == wanted


def test_slices_are_for_dense_models(command: Command, checkpoint, tmp_path):
    result = command("convert", checkpoint, tmp_path / "store", "--slices", 4)
    last = result.err.splitlines()[-1]
    assert result.code in (1, 2) and last.startswith("error: ") and "--slices" in last
    dense = llama().write(tmp_path / "dense")
    assert command("convert", dense, tmp_path / "sliced", "--slices", 4).code == 0
    assert Store.open(tmp_path / "sliced").shape.experts.count == 4


def test_a_store_is_replaced_only_by_force(command: Command, checkpoint, tmp_path):
    store = tmp_path / "store"
    command("convert", checkpoint, store)
    result = command("convert", checkpoint, store, "--bits", 8)
    last = result.err.splitlines()[-1]
    assert result.code == 1 and last.startswith("error: ") and "--force" in last
    assert command("convert", checkpoint, store, "--bits", 8, "--force").code == 0
    assert Store.open(store).manifest.conversion["bits"] == 8


@pytest.mark.parametrize("flags", [("--bits", 7), ("--group", 5), ("--trunk-bits", 1)])
def test_impossible_numbers_are_code_2(command: Command, checkpoint, tmp_path, flags):
    result = command("convert", checkpoint, tmp_path / "store", *flags)
    assert result.code == 2 and result.err.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_a_source_that_is_none_is_one_line(command: Command, tmp_path):
    result = command("convert", tmp_path / "none", tmp_path / "store")
    assert result.code == 1 and result.err.startswith("error: ") and result.err.count("\n") == 1


def test_interrupt_says_how_to_go_on(command: Command, checkpoint, tmp_path, monkeypatch):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flashmoe.apps.convert.convert_checkpoint", interrupted)
    result = command("convert", checkpoint, tmp_path / "store")
    assert result.code == 130 and not result.out
    assert result.err == "interrupted: the same command goes on where it stopped\n"


def test_verify_names_every_fault(command: Command, checkpoint, tmp_path):
    store = tmp_path / "store"
    command("convert", checkpoint, store)
    sound = command("verify", store)
    assert sound.code == 0 and sound.out.endswith(" checked, no fault\n")
    assert command("verify", store, "--against", checkpoint).code == 0
    for expert in (1, 3):
        address = Store.open(store).record(1, expert)
        content = bytearray(address.path.read_bytes())
        content[address.offset + 100] ^= 1
        address.path.write_bytes(content)
    result = command("verify", store)
    assert result.code == 1
    first, second, last = result.out.splitlines()
    assert first.startswith(f"{layer_file(1)}: expert 1 ")
    assert second.startswith(f"{layer_file(1)}: expert 3 ")
    assert last.endswith(", 2 faults")


def test_verify_against_another_checkpoint_finds_it(command: Command, checkpoint, tmp_path):
    other = qwen3_5_moe(seed=9).write(tmp_path / "other")
    store = tmp_path / "store"
    command("convert", checkpoint, store)
    result = command("verify", store, "--against", other)
    assert result.code == 1 and f"{layer_file(0)}: expert 0 " in result.out


def test_plain_progress_is_a_line_every_two_seconds(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    lines = progress.Lines("converting")
    for second in range(9):
        now[0] = 100.0 + second * 0.5
        lines(Progress(4_000_000 + second * 1_000_000, 20_000_000, "layer-001.safetensors"))
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "converting layer-001.safetensors: 40.0% of 19.07 MiB, 2.0 MB/s, 0:00:06 left"
    ), "what an earlier run had done is not part of the rate"
    assert "60.0%" in second and "0:00:04 left" in second


def test_a_terminal_gets_a_bar(checkpoint, tmp_path):
    leader, follower = pty.openpty()
    main = "import sys; from flashmoe.apps.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", main, "convert", str(checkpoint), str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(follower)
    seen = b""
    try:
        while chunk := os.read(leader, 4096):
            seen += chunk
    except OSError:  # the terminal is gone
        pass
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and b"32 records" in out
    assert "100%" in seen.decode() and b"converting layer-003.safetensors" in seen
