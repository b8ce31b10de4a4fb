"""Sizes from the specification's own numbers, plans that keep their promise, true refusals."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flashmoe.errors import BudgetError, InputError
from flashmoe.options import Budget, Runtime
from flashmoe.shape import AttentionShape, ExpertsShape, ModelShape, RecurrentShape
from flashmoe.store.reader import Store
from flashmoe.stream import budget, sizes
from flashmoe.stream.budget import Plan, plan
from flashmoe.stream.memory import Memory
from flashmoe.stream.sizes import scratch_bytes
from flashmoe.stream.units import format_bytes, parse_bytes
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, TinyStore

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PROCESS = 90 * MIB
ROOMY = Memory(64 * GIB, 32 * GIB, None, None, "free memory")
RUNTIME = Runtime(threads=2)

QWEN_397B = ModelShape(
    family="qwen3_5_moe",
    hidden=4096,
    vocabulary=248320,
    mixers=("recurrent", "recurrent", "recurrent", "attention") * 15,
    attention=AttentionShape(32, 2, 256, 64, 1e7, gated=True, qk_norm=True),
    recurrent=RecurrentShape(16, 64, 128, 128, 4),
    experts=ExpertsShape(512, 10, 1024, "softmax", True, 1024),
    norm_eps=1e-6,
    norm_offset=1,
    tied_head=False,
    max_context_tokens=262144,
)


def planned(store: Store, wanted: Budget | None = None, memory: Memory = ROOMY) -> Plan:
    """A plan with everything else as usual."""
    return plan(
        store,
        budget=wanted or Budget(),
        runtime=RUNTIME,
        float_bytes=4,
        process_bytes=PROCESS,
        memory=memory,
    )


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("123", 123),
        ("0B", 0),
        ("8GiB", 8 * GIB),
        ("8G", 8 * GIB),
        ("8g", 8 * GIB),
        (" 8 gib ", 8 * GIB),
        ("8GB", 8_000_000_000),
        ("500MB", 500_000_000),
        ("1.5KiB", 1536),
        ("2T", 2 << 40),
    ],
)
def test_sizes_as_people_write_them(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "8X", "8GiBs", "1e9", "0x10", "1,5G", "٣", "9" * 30]
)
def test_what_is_not_a_size_is_named_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(repr(text)) + ".*8GiB.*500MB"):
        parse_bytes(text)


@given(st.integers(0, 1 << 50))
def test_formatted_sizes_read_back_to_three_digits(nbytes: int) -> None:
    text = format_bytes(nbytes)
    again = parse_bytes(text.removesuffix(" bytes"))
    assert abs(again - nbytes) <= nbytes * 0.005


def test_state_and_kv_are_the_specifications() -> None:
    # SPEC 1.4, 397B: 180 MiB of float32 state, 3.2 MiB of bf16 conv, 30,720 B of bf16 KV a token;
    # the state is there twice while a pass may still be undone.
    recurrent = 180 * MIB
    conv = 45 * 3 * 12288 * 2
    assert sizes.state_bytes(QWEN_397B, 4) == 2 * (recurrent + 2 * conv)
    assert round(conv / MIB, 1) == 3.2
    assert sizes.kv_bytes(QWEN_397B, 1000, 2) == 30_720_000


def test_a_model_without_one_kind_of_layer_pays_nothing_for_it() -> None:
    plain = replace(QWEN_397B, mixers=("attention",) * 4, recurrent=None)
    assert sizes.state_bytes(plain, 4) == 0
    pure = replace(QWEN_397B, mixers=("recurrent",) * 4, attention=None)
    assert sizes.kv_bytes(pure, 1000, 4) == 0


def scratch(chunk_tokens: int, context_tokens: int, threads: int = 2, float_bytes: int = 4) -> int:
    """Scratch of the largest model."""
    return scratch_bytes(
        QWEN_397B,
        chunk_tokens=chunk_tokens,
        context_tokens=context_tokens,
        threads=threads,
        float_bytes=float_bytes,
    )


def test_scratch_covers_the_largest_arrays_of_a_chunk() -> None:
    others = 8 * 128 * 4096 * 4 + 2 * 16 * MIB  # hidden streams, dequantised blocks
    outputs = 128 * 10 * 4096 * 4
    block_of_scores = 3 * 16 * MIB
    one_query = 3 * 262144 * 16 * 4
    assert others + max(outputs, block_of_scores) <= scratch(128, 4096) < 256 * MIB
    assert others + one_query <= scratch(128, 262144) < 512 * MIB
    assert scratch(1, 4096) < 64 * MIB


@given(st.integers(1, 512), st.integers(1, 262143), st.sampled_from([4, 8]))
def test_scratch_never_shrinks_with_a_longer_chunk_or_context(
    chunk: int, context: int, float_bytes: int
) -> None:
    found = scratch(chunk, context, float_bytes=float_bytes)
    assert scratch(chunk + 1, context, float_bytes=float_bytes) > found
    assert scratch(chunk, context + 1, float_bytes=float_bytes) >= found
    assert scratch(chunk, context, threads=3, float_bytes=float_bytes) > found


def test_the_trunk_is_its_parts_and_float_copies_of_vectors(tiny: TinyStore) -> None:
    embedding = 96 * 64 // 2 + 2 * 96 * 2
    assert sizes.trunk_bytes(tiny.store, 4) == embedding + 64 * 2 + 64 * 4


def test_with_room_every_expert_gets_a_slot(tiny: TinyStore) -> None:
    found = planned(tiny.store)
    largest = tiny.store.layout(2).record_bytes
    assert found.slot_bytes == largest > tiny.store.layout(0).record_bytes
    assert found.slots == found.experts_total == LAYERS * EXPERTS
    assert found.binding == "all experts fit"
    assert found.expected_bytes_per_token == 0
    assert found.budget_bytes == found.planned_bytes == found.recommended_bytes
    assert found.context_tokens == 4096
    records = [tiny.store.layout(layer).record_bytes for layer in range(LAYERS)]
    assert found.experts_bytes_total == EXPERTS * sum(records)
    assert found.routed_bytes_per_token == TOP_K * sum(records)
    assert json.loads(json.dumps(found.to_json()))["floor_bytes"] == found.floor_bytes


@given(extra=st.integers(-4 * MIB, 4 * MIB), context=st.integers(1, 8192))
def test_a_plan_keeps_within_its_budget_or_is_refused(
    tiny: TinyStore, extra: int, context: int
) -> None:
    floor = planned(tiny.store, Budget(context_tokens=context)).floor_bytes
    wanted = Budget(ram_bytes=floor + extra, context_tokens=context)
    if extra < 0:
        with pytest.raises(BudgetError, match="below the floor"):
            planned(tiny.store, wanted)
        return
    found = planned(tiny.store, wanted)
    assert found.floor_bytes == floor <= found.planned_bytes <= found.budget_bytes == floor + extra
    assert TOP_K <= found.slots <= found.experts_total
    if found.slots < found.experts_total:
        assert found.planned_bytes + found.slot_bytes > found.budget_bytes
        assert found.binding == "--ram"
    share = 1 - found.slots / found.experts_total
    expected = share * found.routed_bytes_per_token
    assert abs(found.expected_bytes_per_token - expected) <= 1


def test_a_refusal_lists_the_parts_and_both_mends_are_true(tiny: TinyStore) -> None:
    floor = planned(tiny.store).floor_bytes
    short = floor - 700 * KIB
    with pytest.raises(BudgetError) as refusal:
        planned(tiny.store, Budget(ram_bytes=short))
    text = str(refusal.value)
    for part in ("process 90.00 MiB", "allowance", "trunk", "state", "kv", "scratch", "slots"):
        assert part in text
    assert f"{format_bytes(short)} (--ram) is below the floor of {format_bytes(floor)}" in text
    assert "the largest part is process" in text
    enough = re.search(r"give --ram (\d+MiB) or more", text)
    context = re.search(r"give --context (\d+) or less instead of 4096", text)
    assert enough and context
    planned(tiny.store, Budget(ram_bytes=parse_bytes(enough[1])))
    fits = int(context[1])
    planned(tiny.store, Budget(ram_bytes=short, context_tokens=fits))
    with pytest.raises(BudgetError):
        planned(tiny.store, Budget(ram_bytes=short, context_tokens=fits + 1))


def test_no_context_is_offered_where_none_would_do(tiny: TinyStore) -> None:
    with pytest.raises(BudgetError) as refusal:
        planned(tiny.store, Budget(ram_bytes=PROCESS))
    assert "--context" not in str(refusal.value)


def test_a_control_group_binds_and_is_named(tiny: TinyStore) -> None:
    floor = planned(tiny.store).floor_bytes
    limit = floor + budget.MARGIN_BYTES + 2 * planned(tiny.store).slot_bytes
    group = Memory(64 * GIB, 32 * GIB, GIB + limit, GIB, "cgroup memory.max of /app")
    found = planned(tiny.store, memory=group)
    assert found.binding == "cgroup memory.max of /app"
    assert found.slots == TOP_K + 2
    assert found.recommended_bytes == found.budget_bytes == limit - budget.MARGIN_BYTES
    capped = planned(tiny.store, Budget(ram_bytes=8 * GIB), memory=group)
    assert capped.budget_bytes == limit
    tight = replace(group, cgroup_limit_bytes=GIB + floor - 1)
    with pytest.raises(BudgetError, match=r"cgroup memory.max of /app.*raise the limit to \d+MiB"):
        planned(tiny.store, Budget(ram_bytes=8 * GIB), memory=tight)


def test_the_margin_can_be_had_by_asking_for_it(tiny: TinyStore) -> None:
    floor = planned(tiny.store).floor_bytes
    small = Memory(GIB, floor + 10 * MIB, None, None, "free memory")
    with pytest.raises(BudgetError, match="into the margin") as refusal:
        planned(tiny.store, memory=small)
    enough = re.search(r"--ram (\d+MiB)", str(refusal.value))
    assert enough
    planned(tiny.store, Budget(ram_bytes=parse_bytes(enough[1])), small)


def test_memory_this_process_has_already_is_its_own(tiny: TinyStore) -> None:
    floor = planned(tiny.store).floor_bytes
    taken = Memory(GIB, floor - PROCESS, None, None, "free memory", own_bytes=PROCESS)
    assert planned(tiny.store, Budget(ram_bytes=floor), taken).slots == TOP_K
    assert taken.usable_bytes == floor


@given(slots=st.integers(1, 60))
def test_pinned_slots_are_kept_or_refused(tiny: TinyStore, slots: int) -> None:
    if slots < TOP_K:
        with pytest.raises(BudgetError, match=f"give --slots {TOP_K} or more"):
            planned(tiny.store, Budget(slots=slots))
        return
    found = planned(tiny.store, Budget(slots=slots))
    assert found.slots == min(slots, LAYERS * EXPERTS)
    assert found.budget_bytes == found.planned_bytes
    assert found.binding == ("--slots" if slots < LAYERS * EXPERTS else "all experts fit")


@given(slots=st.integers(TOP_K, LAYERS * EXPERTS), room=st.integers(0, 1 << 20))
def test_pinned_slots_that_do_not_fit_are_refused(tiny: TinyStore, slots: int, room: int) -> None:
    floor = planned(tiny.store)
    fitting = TOP_K + room // floor.slot_bytes
    assume(fitting < slots)
    wanted = Budget(ram_bytes=floor.floor_bytes + room, slots=slots)
    with pytest.raises(BudgetError, match=f"room for {fitting}; give --slots {fitting} or less"):
        planned(tiny.store, wanted)


def test_fewer_experts_a_token_need_fewer_slots_and_bytes(tiny: TinyStore) -> None:
    full = planned(tiny.store)
    one = plan(
        tiny.store,
        budget=Budget(),
        runtime=RUNTIME,
        float_bytes=4,
        process_bytes=PROCESS,
        memory=ROOMY,
        experts_per_token=1,
    )
    assert one.floor_slots == 1
    assert one.floor_bytes == full.floor_bytes - full.slot_bytes
    assert 2 * one.routed_bytes_per_token == full.routed_bytes_per_token


def test_a_context_beyond_the_models_own_is_an_input_error(tiny: TinyStore) -> None:
    with pytest.raises(InputError, match="--context 8193 exceeds the model's 8192"):
        planned(tiny.store, Budget(context_tokens=8193))


def test_a_chunk_is_never_longer_than_the_context(tiny: TinyStore) -> None:
    assert planned(tiny.store, Budget(context_tokens=16)).chunk_tokens == 16
    assert planned(tiny.store).chunk_tokens == RUNTIME.chunk_tokens
