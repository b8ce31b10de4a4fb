"""``plan``: the table and the JSON object say what ``run`` would do."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from flashmoe.apps import plan as plan_app
from flashmoe.apps.plan import budget_of
from flashmoe.errors import InputError
from flashmoe.options import Budget
from flashmoe.stream.budget import Plan
from tests.apps.conftest import Command


def test_budgets_that_the_flags_ask_for():
    assert budget_of(None, None, None, 3) == Budget()
    assert budget_of("recommended", 9, 5, 3) == Budget(context_tokens=9, slots=5)
    assert budget_of("floor", 9, None, 3) == Budget(context_tokens=9, slots=3)
    assert budget_of("8GiB", None, 5, 3) == Budget(ram_bytes=8 << 30, slots=5)
    with pytest.raises(InputError, match="'much' is not a size"):
        budget_of("much", None, None, 3)
    with pytest.raises(InputError, match="ram_bytes is 0"):
        budget_of("0", None, None, 3)


def test_the_plan_as_json_adds_up(command: Command, store):
    result = command("plan", store, "--ram", "8GiB", "--chunk-tokens", 256, "--json")
    assert result.code == 0 and not result.err
    found = json.loads(result.out)
    parts = ("process", "allowance", "trunk", "state", "kv", "scratch")
    fixed = sum(found[f"{part}_bytes"] for part in parts)
    least = fixed + 3 * found["slot_bytes"]
    assert found["floor_bytes"] == max(least, found["peak_bytes"])
    assert found["sessions"] == 1
    assert found["slots"] == found["experts_total"] == 32 and found["slot_bytes"] == 4096
    assert found["budget_bytes"] == min(8 << 30, found["usable_bytes"])
    assert found["context_tokens"] == 512 and found["chunk_tokens"] == 256
    chosen = json.loads(command("plan", store, "--ram", "8GiB", "--json").out)
    assert chosen["chunk_tokens"] == 512 and chosen["floor_bytes"] == found["floor_bytes"]
    assert chosen["scratch_bytes"] > found["scratch_bytes"] > found["step_scratch_bytes"] > 0


def test_the_plan_as_a_table_names_every_part(command: Command, store):
    result = command("plan", store, "--context", 100)
    names = [line.split()[0] for line in result.out.splitlines() if line.strip()]
    assert names[:8] == [
        *("process", "allowance", "trunk", "state", "KV", "scratch", "slots", "planned"),
    ]
    assert names[8:] == ["floor", "recommended", "budget", "slots", "a"]
    assert "1 session full, of 100 tokens" in result.out
    assert "a chunk of 100 tokens; " in result.out and " for a single one" in result.out
    assert "32 while the context is empty, 32 once it is full" in result.out
    assert "bound by: all experts fit" in result.out
    assert "a token reads about 0 bytes of 48.00 KiB" in result.out


def test_slots_and_experts_that_are_asked_for_are_planned(command: Command, store):
    found = json.loads(command("plan", store, "--slots", 5, "--json").out)
    assert (found["slots"], found["full_slots"], found["binding"]) == (5, 5, "--slots")
    result = command("plan", store, "--experts-per-token", 2, "--ram", "floor", "--json")
    found = json.loads(result.out)
    assert found["slots"] == found["floor_slots"] == 2
    assert command("plan", store, "--experts-per-token", 9).code == 2
    assert command("plan", store, "--slots", 1).code == 1


def test_the_floor_is_planned_and_less_is_refused(command: Command, store):
    found = json.loads(command("plan", store, "--ram", "floor", "--json").out)
    assert found["slots"] == found["floor_slots"] == 3
    assert found["budget_bytes"] == found["floor_bytes"]
    assert found["expected_bytes_per_token"] == 4 * 3 * 4096 * 29 // 32
    result = command("plan", store, "--ram", found["floor_bytes"] - (30 << 20))
    assert result.code == 1 and "is below the floor of " in result.err
    assert result.err.count("\n") == 1
    result = command("plan", store, "--context", 513)
    assert result.code == 2 and "512" in result.err


def test_what_is_left_to_the_page_cache_is_said(command: Command, store):
    found = json.loads(command("plan", store, "--io", "os", "--json").out)
    parts = ("process", "allowance", "trunk", "state", "kv", "scratch")
    fixed = sum(found[f"{part}_bytes"] for part in parts)
    assert found["slots"] == found["floor_slots"] == 3 and found["binding"] == "--io os"
    own = fixed + 3 * found["slot_bytes"]
    assert found["page_cache_bytes"] == found["budget_bytes"] - own > 0
    out = command("plan", store, "--io", "os").out
    assert "left to it: it keeps the experts (--io os)" in out and "bound by: --io os" in out
    assert json.loads(command("plan", store, "--json").out)["page_cache_bytes"] == 0


def test_a_peak_that_makes_the_floor_is_named(command: Command, store, monkeypatch):
    """The engine's plan of a process that has held much more than it needs."""
    real = plan_app.plan_store

    def after_a_peak(*arguments: Any, **more: Any) -> Plan:
        found = real(*arguments, **more)
        return replace(found, floor_bytes=8 << 30, peak_bytes=8 << 30)

    monkeypatch.setattr(plan_app, "plan_store", after_a_peak)
    out = command("plan", store).out
    line = next(line for line in out.splitlines() if line.startswith("floor "))
    assert "8.00 GiB" in line and "the peak of loading the tokenizer" in line
