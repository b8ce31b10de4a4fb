"""``bench``: its figures, their formulas, and what it measures them against."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flashmoe.apps import bench_figures, ceilings
from flashmoe.apps.bench import reply, warm_up
from flashmoe.engine import Engine
from flashmoe.errors import ReadError, StoreError
from flashmoe.options import Budget, Runtime
from flashmoe.quant import Affine, Plain
from flashmoe.step import Step
from flashmoe.store.reader import Store
from tests.apps.conftest import Command
from tests.synthetic import DENSE, HYBRID, write_store

ROOT = Path(__file__).parents[2]
ASKED = {
    *("pp_tok_s", "tg_tok_s", "ttft_ms", "bytes_per_token", "hit_rate", "disk_bytes_s"),
    "missed_bytes_per_token",
    *("memory_bytes_s", "limit_tok_s", "share_of_limit", "peak_rss_bytes", "experts_per_token"),
    *("bits", "context", "ram_bytes", "cold"),
}
LIMITS = ceilings.Ceilings(1e6, 4, True, 2e7)
QUICK = ("--prompt-tokens", 20, "--gen-tokens", 8, "--repeat", 2)


@pytest.fixture
def ceilings_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring takes seconds, and what is measured depends on the machine."""
    monkeypatch.setattr(ceilings, "measure", lambda *_: LIMITS)


def test_the_demo_from_beginning_to_end(command: Command):
    result = command("bench", "demo", *QUICK, "--ram", "floor", "--cold")
    assert result.code == 0, result.err
    *table, last = result.out.splitlines()
    found = json.loads(last)
    assert list(found) == list(bench_figures.KEYS) and set(found) >= ASKED
    assert found["cold"] is True and found["bits"] == 4 and found["experts_per_token"] == 4
    assert found["context"] == 28 and found["slots"] == 4
    for key in ("pp_tok_s", "tg_tok_s", "ttft_ms", "disk_bytes_s", "memory_bytes_s"):
        assert found[key] > 0
    assert found["disk_depth"] in ceilings.DEPTHS
    assert found["bytes_per_token"] > 0 and found["peak_rss_bytes"] > 1 << 20
    names = ("disk", "memory", "prompt", "decode", "limit", "peak memory")
    text = "\n".join(table)
    assert all(f"\n {name} " in f"\n{text}" for name in names)
    assert "4 experts a token, 4 bits, 2 repetitions, cold, context 28" in text


@pytest.mark.usefixtures("ceilings_known")
def test_json_alone_and_the_limit(command: Command, store):
    result = command("bench", store, *QUICK, "--ram", "floor", "--json")
    assert result.code == 0 and result.out.count("\n") == 1
    found = json.loads(result.out)
    assert found["bytes_per_token"] > 0
    disk, touched = found["missed_bytes_per_token"] / 1e6, found["touched_bytes_per_token"] / 2e7
    assert found["limit_tok_s"] == pytest.approx(1 / max(disk, touched))
    assert found["share_of_limit"] == pytest.approx(found["tg_tok_s"] / found["limit_tok_s"])
    low, high = found["tg_tok_s_range"]
    assert low <= found["tg_tok_s"] <= high and found["repeat"] == 2
    assert "distinct" not in found


@pytest.mark.usefixtures("ceilings_known")
def test_a_warm_cache_reads_nothing_and_a_cold_one_does(command: Command, store):
    flags = ("--prompt-tokens", 200, "--gen-tokens", 4, "--repeat", 1, "--json")
    warm = json.loads(command("bench", store, *flags).out)
    assert warm["bytes_per_token"] == warm["missed_bytes_per_token"] == 0
    assert warm["hit_rate"] == 1
    flags = ("--prompt-tokens", 1, "--gen-tokens", 4, "--repeat", 3, "--json", "--cold")
    cold = json.loads(command("bench", store, *flags).out)
    assert cold["bytes_per_token"] > 0 and cold["hit_rate"] < 1


def test_warming_up_fills_slots_for_all(tmp_path):
    """Prompts of a few tokens ask for a few experts each."""
    path = write_store(tmp_path / "store", HYBRID)
    with Engine.open(path) as engine:
        asked = engine.shape.layers * engine.shape.experts.count
        assert engine.streamer.free_slots == engine.streamer.slots == asked
        warm_up(engine, 6)
        assert engine.streamer.free_slots <= asked // 20
        assert sum(step.misses for step in reply(engine, 1, 6, 8).steps) <= asked // 20


@pytest.mark.parametrize("experts", [0, 300])
def test_flags_are_checked_before_anything_is_measured(
    command: Command, store, monkeypatch, experts
):
    monkeypatch.setattr(ceilings, "measure", lambda *_: pytest.fail("measured"))
    result = command("bench", store, *QUICK, "--experts-per-token", experts)
    assert result.code == 2 and "give 1 to" in result.err


def test_missed_bytes_are_the_experts_missed_and_not_what_was_read(store):
    def step(misses: int) -> Step:
        return Step(1, "", None, (), None, 4, 3, misses, 10**9, 0.0, 1.0)

    with Engine.open(store) as engine:
        replies = [
            bench_figures.Reply([step(9), step(misses), step(misses + 2)], misses * 2000)
            for misses in (5, 1, 2)
        ]
        found = bench_figures.figures(engine, LIMITS, replies, cold=False)
    record = Store.open(store).layout(0).record_bytes
    assert found["missed_bytes_per_token"] == 3 * record  # the median of 6, 2 and 3
    assert found["bytes_per_token"] == 10**9
    assert found["limit_tok_s"] == pytest.approx(1e6 / (3 * record))
    assert found["device_bytes_per_token"] == 2000 and found["io"] == "direct"


def test_without_slots_only_the_device_tells_what_was_missing(store):
    step = Step(1, "", None, (), None, 4, 0, 7, 10**6, 0.0, 1.0)
    with Engine.open(store, runtime=Runtime(io="os")) as engine:
        for device_bytes in (9000, None):
            replies = [bench_figures.Reply([step] * 4, device_bytes)]
            found = bench_figures.figures(engine, LIMITS, replies, cold=False)
            assert found["hit_rate"] is None and found["missed_bytes_per_token"] is None
            assert found["bytes_per_token"] == 10**6
            touched = found["touched_bytes_per_token"] / 2e7
            seconds = touched if device_bytes is None else max(3000 / 1e6, touched)
            assert found["limit_tok_s"] == pytest.approx(1 / seconds)
            assert found["device_bytes_per_token"] == (device_bytes and 3000)
            bench_figures.table(found)


@pytest.mark.usefixtures("ceilings_known")
def test_the_page_cache_may_keep_the_experts(command: Command, store):
    result = command("bench", store, *QUICK, "--io", "os")
    assert "the page cache keeps the experts" in result.out
    assert json.loads(result.out.splitlines()[-1])["slots"] == 3


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs /proc/self/io")
def test_bytes_from_the_device_are_counted(tmp_path, store):
    if os.major(store.stat().st_dev) == 0:
        pytest.skip("this file system is on no device of its own")
    with Engine.open(store, budget=Budget(slots=3), runtime=Runtime(profile=False)) as engine:
        found = reply(engine, 1, 2, 9)
    assert found.device_bytes is not None
    assert found.device_bytes >= sum(step.bytes_read for step in found.steps[1:]) > 0


@pytest.mark.usefixtures("ceilings_known")
def test_smaller_keys_and_values_are_called_lossy(command: Command, store):
    result = command("bench", store, *QUICK, "--kv", "int8")
    assert "lossy: keys and values are rounded to 8 bits" in result.err


@pytest.mark.usefixtures("ceilings_known")
def test_other_experts_a_token_are_called_lossy(command: Command, store):
    result = command("bench", store, *QUICK, "--experts-per-token", 2)
    assert "lossy: 2 of 3 experts a token" in result.err
    assert "lossy: the model's own is 3 experts a token" in result.out
    assert json.loads(result.out.splitlines()[-1])["experts_per_token"] == 2


@pytest.mark.usefixtures("ceilings_known")
def test_linked_layer_files_are_told(command: Command, tmp_path):
    path = tmp_path / "store"
    script = ROOT / "bench" / "synthetic.py"
    arguments = ("tiny", "--layers", "5", "--distinct", "2", "--out", str(path))
    subprocess.run([sys.executable, str(script), *arguments], check=True, capture_output=True)
    result = command("bench", path, *QUICK)
    assert json.loads(result.out.splitlines()[-1])["distinct"] == 2
    assert "only 2 layer files are distinct" in result.out
    records = ceilings.distinct_records(Store.open(path))
    assert len(records) == 2 * 16 and len(ceilings.distinct_layers(Store.open(path))) == 2


@pytest.mark.parametrize(
    "flags, code, message",
    [
        (("--prompt-tokens", 500, "--gen-tokens", 13), 2, "make 513; this model takes 512"),
        (("--prompt-tokens", 0), 2, "--prompt-tokens"),
        (("--gen-tokens", 1), 2, "--gen-tokens"),
        (("--repeat", 0), 2, "--repeat"),
        ((*QUICK, "--ram", "1MiB"), 1, "below the floor"),
    ],
)
@pytest.mark.usefixtures("ceilings_known")
def test_what_cannot_be_measured_is_refused(command: Command, store, flags, code, message):
    result = command("bench", store, *flags)
    assert result.code == code and not result.out
    assert message in result.err and result.last.startswith("error: ")


def test_a_stop_token_does_not_end_a_reply(store, monkeypatch):
    monkeypatch.setattr(Engine, "stop_ids", frozenset(range(HYBRID.vocabulary)))
    with Engine.open(store) as engine:
        steps = reply(engine, 1, 9, 5).steps
        again = reply(engine, 1, 9, 5).steps
    assert [step.finish_reason for step in steps] == ["stop"] * 5
    assert [step.prompt_tokens for step in steps] == [9, 0, 0, 0, 0]
    assert [step.id for step in steps] == [step.id for step in again]


def test_an_emptied_cache_is_cold_and_the_answer_the_same(store):
    with Engine.open(store) as engine:
        first = engine.session().logits([1, 2, 3])
        cost = engine.counters
        engine.empty_cache()
        assert np.array_equal(engine.session().logits([1, 2, 3]), first)
        again = engine.counters.since(cost)
        assert (again.hits, again.misses) == (cost.hits, cost.misses) and cost.misses > 0


@pytest.mark.parametrize("shape", [HYBRID, DENSE], ids=["own head", "tied head"])
def test_touched_bytes_are_weights_and_scales_of_what_a_token_needs(tmp_path, shape):
    path = write_store(tmp_path / "store", shape, Affine(4, 32))
    with Engine.open(path, budget=Budget(context_tokens=16)) as engine:
        found = bench_figures.touched_bytes(engine)
        trunk = sum(matrix.nbytes for matrix in engine.store.trunk().values())
    row = shape.hidden // 2 + shape.hidden // 32 * 4  # bytes of a row of `hidden` inputs
    embedding = 0 if shape.tied_head else shape.vocabulary * row
    expert = 3 * shape.hidden * shape.experts.intermediate * 5 // 8  # 4 bits, and 32 bits in 32
    assert found == trunk - embedding + shape.layers * shape.experts.top_k * expert


def test_bits(tmp_path):
    assert [bench_figures.bits_of(form) for form in (Affine(3, 64), Plain("F32"))] == [3, 32]
    path = write_store(tmp_path / "store", HYBRID, Plain("BF16"))
    assert bench_figures.mean_bits(Store.open(path)) == 16


def test_a_damaged_record_is_found_while_measuring(tmp_path):
    path = write_store(tmp_path / "store")
    with (path / "layer-001.safetensors").open("r+b") as file:
        file.seek(-100, 2)
        byte = file.read(1)
        file.seek(-100, 2)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ReadError, match="is damaged"):
        ceilings.disk_rate(Store.open(path))
    with pytest.raises(StoreError, match="is damaged"):
        ceilings.measure(path, Runtime())


def test_an_interrupt_ends_the_bench(store):
    code = "import sys\nfrom flashmoe.apps.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "bench", str(store), "--prompt-tokens", "9"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "measuring what disk and memory allow\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_memory_is_read_at_a_believable_rate():
    assert 1e8 < ceilings.memory_rate(1) < 1e13
