"""``bench`` with a GPU: its ceilings, what a token wants of each tier, and the one that binds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from flashmoe.apps import bench_figures, bench_vram, ceilings
from flashmoe.apps.bench_figures import Reply
from flashmoe.engine import Engine
from flashmoe.kernels import on_device
from flashmoe.options import Budget, Runtime
from flashmoe.step import Step
from tests.apps.conftest import Command
from tests.kernels.cuda.emulated import EmulatedDevice

LIMITS = ceilings.Ceilings(1e6, 4, True, 2e7, 3e9, 5e7)
STEP = Step(
    *(1, "", None, (), None, 9, 3, 2, 10**6, 1.0, 10.0),
    **{"vram_hits": 12, "vram_misses": 4, "copied_bytes": 10**6, "ms_copy_wait": 3.0},
)


@pytest.fixture(scope="module")
def engine():
    kernels, runtime = on_device(EmulatedDevice()), Runtime(profile=False, threads=1)
    budget = Budget(context_tokens=64, vram_bytes=78 << 20)
    with Engine.open("demo", kernels=kernels, budget=budget, runtime=runtime) as engine:
        yield engine


def figures(engine: Engine, limits: ceilings.Ceilings = LIMITS, **changes: Any) -> dict[str, Any]:
    steps = [STEP, *[replace(STEP, prompt_tokens=0, **changes)] * 4]
    return bench_figures.figures(engine, limits, [Reply(steps, 0)] * 3, cold=False)


def test_a_token_wants_something_of_each_tier(engine):
    found = figures(engine)
    record = bench_figures.record_bytes(engine)
    assert list(found) == [*bench_figures.KEYS, *bench_vram.KEYS]
    assert (found["gpu"], found["vram_slots"]) == ("emulated", engine.vram.slots)
    assert (found["vram_bytes_s"], found["copy_bytes_s"]) == (3e9, 5e7)
    assert found["vram_hit_rate"] == 0.75 and found["ms_copy_wait_per_token"] == 3.0
    assert found["copied_bytes_per_token"] == 10**6  # with what was copied in vain
    assert found["vram_missed_bytes_per_token"] == 4 * record
    assert found["limit_ms"] == pytest.approx(
        {
            "disk": 1e3 * 2 * record / 1e6,
            "copies": 1e3 * 4 * record / 5e7,
            "vram": 1e3 * bench_figures.touched_bytes(engine) / 3e9,
        }
    )
    assert found["binding"] == "disk" and found["python_share"] is None
    assert found["limit_tok_s"] == pytest.approx(1e6 / (2 * record))
    assert found["share_of_limit"] == pytest.approx(found["tg_tok_s"] / found["limit_tok_s"])


@pytest.mark.parametrize(
    "binding, misses, limits",
    [
        ("copies", 0, LIMITS),
        ("vram", 0, replace(LIMITS, copy_bytes_s=1e12)),
        ("disk", 2, replace(LIMITS, copy_bytes_s=1e12)),
    ],
)
def test_the_longest_time_binds(engine, binding, misses, limits):
    found = figures(engine, limits, misses=misses)
    assert found["binding"] == binding
    assert found["limit_tok_s"] == pytest.approx(1e3 / found["limit_ms"][binding])
    assert found["limit_ms"][binding] == max(found["limit_ms"].values())
    assert bench_vram.allowance(found).startswith(f"{bench_vram.TIERS[binding]} binds: the disk ")


def test_a_prompt_waits_for_what_is_copied_at_the_least(engine):
    record = bench_figures.record_bytes(engine)
    cost = bench_figures.PromptCost((4,) * 8)
    replies = [Reply([replace(STEP, vram_misses=8), STEP], 0, cost)]
    found = bench_figures.figures(
        engine, replace(LIMITS, copy_bytes_s=1e3, disk_bytes_s=1e9), replies, cold=False
    )
    assert found["pp_limit_tok_s"] == pytest.approx(9 / (8 * record / 1e3))
    assert found["prompt_ms_arithmetic"] == 6.0


@pytest.mark.usefixtures("gpu")
def test_from_beginning_to_end(command: Command, monkeypatch):
    asked = []
    monkeypatch.setattr(ceilings, "measure", lambda *given: asked.append(given) or LIMITS)
    flags = ("--prompt-tokens", 3, "--gen-tokens", 3, "--repeat", 1, "--cold")
    result = command("bench", "demo", *flags, "--kernels", "cuda", "--vram", "78MiB")
    assert result.code == 0, result.err
    assert [given[2] for given in asked] == ["cuda"]
    *table, last = result.out.splitlines()
    found = json.loads(last)
    assert found["gpu"] == "emulated" and 0 < found["vram_bytes"] <= 78 << 20
    assert found["copied_bytes_per_token"] > 0 and 0 <= found["vram_hit_rate"] < 1
    text = "\n".join(table)
    names = ("GPU's memory", "copies to it", "copied a token", "hits in VRAM", "copy wait")
    assert all(f"\n {name} " in f"\n{text}" for name in names)
    assert "3.00 GB/s  emulated" in text and " binds: the disk " in text
    assert "Python" not in text and "what disk and memory allow" not in text


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("kernels, rates", [("cuda", (3e12, 5e10)), ("auto", (None, None))])
def test_the_gpu_measures_itself(monkeypatch, capsys, store, kernels, rates):
    monkeypatch.setattr(ceilings, "disk_rate", lambda store: (1e6, 4, True))
    monkeypatch.setattr(ceilings, "memory_rate", lambda threads: 2e7)
    ceilings.main(str(store), "1", kernels)
    found = ceilings.Ceilings(**json.loads(capsys.readouterr().out))
    assert found == ceilings.Ceilings(1e6, 4, True, 2e7, *rates)


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_gone_is_a_refusal(monkeypatch, capsys, store):
    monkeypatch.setattr(ceilings, "disk_rate", lambda store: (1e6, 4, True))
    ceilings.main(str(store), "1", "cuda")
    assert "no NVIDIA GPU" in json.loads(capsys.readouterr().out)["refusal"]
