"""``plan --kernels cuda``: the division of a GPU's memory, as an engine would make it."""

from __future__ import annotations

import json

import pytest

from flashmoe import Budget, Engine, Runtime
from flashmoe.kernels import on_device
from tests.apps.conftest import Command


def test_the_plan_is_that_of_an_engine(command: Command, gpu):
    asked = ("--context", 64, "--vram", "78MiB", "--kernels", "cuda")
    found = json.loads(command("plan", "demo", *asked, "--json").out)["vram"]
    budget = Budget(context_tokens=64, vram_bytes=78 << 20)
    kernels, runtime = on_device(gpu), Runtime(profile=False, threads=1)
    with Engine.open("demo", kernels=kernels, budget=budget, runtime=runtime) as engine:
        room = engine.vram
    assert room is not None
    for part in ("trunk", "timelines", "slot", "planned"):
        assert found[f"{part}_bytes"] == getattr(room, f"{part}_bytes") > 0
    assert found["slots"] == room.slots > 4
    assert found["slots"] < 256  # it binds
    fixed = sum(found[f"{part}_bytes"] for part in ("trunk", "timelines", "scratch"))
    assert fixed + found["slots"] * found["slot_bytes"] == found["planned_bytes"] <= 78 << 20
    assert (found["gpu"], found["free_bytes"], found["total_bytes"]) == ("emulated", *gpu.memory())


@pytest.mark.usefixtures("gpu")
def test_the_table_names_every_part(command: Command):
    result = command("plan", "demo", "--context", 64, "--kernels", "cuda")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    start = lines.index("in VRAM of emulated:")
    names = [line.split()[0] for line in lines[start + 1 :] if line.strip()]
    assert names == ["trunk", "timelines", "scratch", "slots", "planned"]
    assert "state and KV, 1 session full, of 64 tokens" in result.out
    assert "of 8.00 GiB free, 16.00 GiB in all" in result.out
    assert "VRAM" not in command("plan", "demo").out


@pytest.mark.usefixtures("gpu")
def test_less_than_the_floor_is_refused(command: Command):
    result = command("plan", "demo", "--kernels", "cuda", "--vram", "1MiB")
    assert result.code == 1 and not result.out
    assert "the GPU must hold at least" in result.last and "(--vram)" in result.last
