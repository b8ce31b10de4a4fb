"""Plans that keep their promise, and refusals that are true."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flashmoe.errors import BudgetError, InputError
from flashmoe.kernels import reference
from flashmoe.options import Budget, Runtime
from flashmoe.store.reader import Store
from flashmoe.stream import budget, sizes
from flashmoe.stream.budget import Plan, plan
from flashmoe.stream.memory import Memory
from flashmoe.stream.units import format_bytes, parse_bytes
from tests.stream.conftest import EXPERTS, LAYERS, TOP_K, TinyStore

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PROCESS = 90 * MIB
ROOMY = Memory(64 * GIB, 32 * GIB, None, None, "free memory")
RUNTIME = Runtime(threads=2)


def planned(
    store: Store,
    wanted: Budget | None = None,
    memory: Memory = ROOMY,
    *,
    peak_bytes: int = 0,
    scratch_block_bytes: int | None = None,
    runtime: Runtime = RUNTIME,
) -> Plan:
    """A plan with everything else as usual."""
    return plan(
        store,
        budget=wanted or Budget(),
        runtime=runtime,
        float_bytes=4,
        process_bytes=PROCESS,
        memory=memory,
        peak_bytes=peak_bytes,
        scratch_block_bytes=scratch_block_bytes,
    )


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
    assert TOP_K <= found.full_slots <= found.slots <= found.experts_total
    if found.full_slots < found.experts_total:
        assert found.planned_bytes + found.slot_bytes > found.budget_bytes
        assert found.binding == "--ram"
    work = found.kv_bytes + found.scratch_bytes - found.step_scratch_bytes
    if found.slots < found.experts_total:
        more = found.budget_bytes - found.planned_bytes + work
        assert found.slots == found.full_slots + more // found.slot_bytes
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
    assert found.full_slots == TOP_K + 2
    assert found.recommended_bytes == found.budget_bytes == limit - budget.MARGIN_BYTES
    capped = planned(tiny.store, Budget(ram_bytes=8 * GIB), memory=group)
    assert capped.budget_bytes == limit
    tight = replace(group, cgroup_limit_bytes=GIB + floor - 1)
    with pytest.raises(BudgetError, match=r"cgroup memory.max of /app.*raise the limit to \d+MiB"):
        planned(tiny.store, Budget(ram_bytes=8 * GIB), memory=tight)


def test_on_a_small_machine_the_margin_gives_way_before_the_floor_does(tiny: TinyStore) -> None:
    floor = planned(tiny.store).floor_bytes
    small = Memory(GIB, floor + 10 * MIB, None, None, "free memory")
    found = planned(tiny.store, memory=small)
    assert (found.full_slots, found.recommended_bytes) == (TOP_K, floor)
    with pytest.raises(BudgetError, match="below the floor"):
        planned(tiny.store, memory=replace(small, available_bytes=floor - 1))


def test_memory_this_process_has_already_is_its_own(tiny: TinyStore) -> None:
    floor = planned(tiny.store).floor_bytes
    taken = Memory(GIB, floor - PROCESS, None, None, "free memory", own_bytes=PROCESS)
    assert planned(tiny.store, Budget(ram_bytes=floor), taken).full_slots == TOP_K
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


@pytest.mark.parametrize("room", [0, 100 * KIB, GIB])
def test_left_to_the_page_cache_slots_are_few_and_the_rest_is_its(
    tiny: TinyStore, room: int
) -> None:
    runtime = Runtime(io="os")
    floor = planned(tiny.store).floor_bytes
    found = planned(tiny.store, Budget(ram_bytes=floor + room), runtime=runtime)
    assert found.slots == TOP_K and found.binding == "--io os"
    assert found.page_cache_bytes + found.planned_bytes == floor + room
    assert found.full_slots == TOP_K and found.planned_bytes >= floor
    missing = max(1 - found.page_cache_bytes / found.experts_bytes_total, 0)
    expected = found.routed_bytes_per_token * missing
    assert found.expected_bytes_per_token == pytest.approx(expected, abs=1)
    with pytest.raises(InputError, match="leave out --slots"):
        planned(tiny.store, Budget(slots=TOP_K + 1), runtime=runtime)
    assert planned(tiny.store, Budget(slots=TOP_K), runtime=runtime).page_cache_bytes == 0


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


def test_what_the_host_sets_aside_is_a_part_of_its_own(tiny: TinyStore) -> None:
    without, wanted = planned(tiny.store), Budget(host_bytes=200 * MIB)
    found = planned(tiny.store, wanted)
    assert (found.host_bytes, found.process_bytes) == (200 * MIB, PROCESS)
    assert found.floor_bytes - without.floor_bytes == 200 * MIB
    assert found.planned_bytes - without.planned_bytes == 200 * MIB
    with pytest.raises(BudgetError, match=r"requests 200\.00 MiB") as refusal:
        planned(tiny.store, replace(wanted, ram_bytes=without.floor_bytes + 150 * MIB))
    assert "set 150MiB or less aside for requests" in str(refusal.value)
    less = Budget(without.floor_bytes + 150 * MIB, host_bytes=150 * MIB)
    assert planned(tiny.store, less).full_slots >= TOP_K
    for short in (replace(wanted, ram_bytes=PROCESS), Budget(PROCESS)):
        with pytest.raises(BudgetError) as refusal:
            planned(tiny.store, short)
        assert "aside" not in str(refusal.value), "it would not be enough"


def test_a_context_beyond_the_models_own_is_an_input_error(tiny: TinyStore) -> None:
    with pytest.raises(InputError, match="--context 8193 exceeds the model's 8192"):
        planned(tiny.store, Budget(context_tokens=8193))


def test_a_chunk_is_never_longer_than_the_context(tiny: TinyStore) -> None:
    assert planned(tiny.store, Budget(context_tokens=16)).chunk_tokens == 16
    asked = Runtime(chunk_tokens=100)
    assert planned(tiny.store, runtime=asked).chunk_tokens == 100
    assert planned(tiny.store, Budget(context_tokens=100), runtime=asked).chunk_tokens == 100
    with pytest.raises(InputError, match="--chunk-tokens 100: no more than the context's 99 tok"):
        planned(tiny.store, Budget(context_tokens=99), runtime=asked)
    floor = planned(tiny.store).floor_bytes
    with pytest.raises(BudgetError, match="leave out --chunk-tokens"):
        planned(tiny.store, Budget(floor), runtime=Runtime(chunk_tokens=4096))


def test_every_session_has_its_own_timeline(tiny: TinyStore) -> None:
    one, three = planned(tiny.store), planned(tiny.store, Budget(sessions=3))
    state = sizes.state_bytes(tiny.store.shape, 4)
    assert (one.sessions, three.sessions) == (1, 3)
    assert one.kv_bytes == sizes.kv_bytes(tiny.store.shape, 4096, 4, Budget.kv) > 0
    assert three.kv_bytes == 3 * one.kv_bytes
    assert (one.state_bytes, three.state_bytes) == (2 * state, 6 * state)  # and a rewind's
    copied = sizes.array_bytes(tiny.store.shape, 4096, 4, Budget.kv)
    # A timeline is saved while another has a pass; and each has a reply of its own.
    replies = 2 * sizes.REPLY_FLOATS * tiny.store.shape.vocabulary * 8
    assert three.scratch_bytes == one.scratch_bytes + copied + replies


def test_fewer_sessions_are_offered_where_they_help(tiny: TinyStore) -> None:
    one, wanted = planned(tiny.store), Budget(sessions=6, ram_bytes=0x7FFFFFFF)
    grown = planned(tiny.store, replace(wanted, sessions=4)).floor_bytes
    assert grown > one.floor_bytes
    short = replace(wanted, ram_bytes=grown)
    with pytest.raises(BudgetError, match="plan 4 sessions or fewer instead of 6"):
        planned(tiny.store, short)
    assert planned(tiny.store, replace(short, sessions=4)).full_slots == TOP_K
    with pytest.raises(BudgetError) as refusal:
        planned(tiny.store, Budget(ram_bytes=PROCESS, sessions=6))
    assert "sessions" not in str(refusal.value)


def test_saving_a_long_context_is_planned_for(tiny: TinyStore) -> None:
    """With one session the copy and a pass are never there together, so the larger counts."""
    found = planned(tiny.store, Budget(context_tokens=8192))
    assert found.scratch_bytes >= sizes.array_bytes(tiny.store.shape, 8192, 4, "bf16")


def test_the_kernels_own_block_is_part_of_scratch(tiny: TinyStore) -> None:
    none = planned(tiny.store, scratch_block_bytes=0)
    some = planned(tiny.store, scratch_block_bytes=3 * MIB)
    assert some.scratch_bytes - none.scratch_bytes == 3 * MIB
    assert some.floor_bytes - none.floor_bytes == 3 * MIB
    default = planned(tiny.store)
    block = reference.block_bytes(np.dtype(np.float32))
    assert default.scratch_bytes - none.scratch_bytes == block


def test_threads_cost_nothing_by_themselves(tiny: TinyStore) -> None:
    def floor(threads: int) -> int:
        return plan(
            tiny.store,
            budget=Budget(),
            runtime=Runtime(threads=threads),
            float_bytes=4,
            process_bytes=PROCESS,
            memory=ROOMY,
        ).floor_bytes

    assert floor(64) == floor(1)


@given(over=st.integers(-8 * MIB, 8 * MIB), extra=st.integers(-4 * MIB, 12 * MIB))
def test_a_peak_that_was_reached_is_part_of_the_floor(
    tiny: TinyStore, over: int, extra: int
) -> None:
    least = planned(tiny.store).floor_bytes
    peak = least + over
    floor = planned(tiny.store, peak_bytes=peak).floor_bytes
    assert floor == max(least, peak)
    wanted = Budget(ram_bytes=floor + extra)
    if extra < 0:
        with pytest.raises(BudgetError, match="is below the floor of") as refusal:
            planned(tiny.store, wanted, peak_bytes=peak)
        assert ("a peak cannot be taken back" in str(refusal.value)) == (peak > least)
        own_process = peak > floor + extra >= least
        assert ("in a process of its own" in str(refusal.value)) == own_process
        enough = re.search(r"give --ram (\d+MiB) or more", str(refusal.value))
        assert enough
        planned(tiny.store, Budget(ram_bytes=parse_bytes(enough[1])), peak_bytes=peak)
        return
    found = planned(tiny.store, wanted, peak_bytes=peak)
    assert peak <= found.floor_bytes <= found.budget_bytes == floor + extra
    assert found.planned_bytes <= found.budget_bytes
    # A peak of the past takes no slot: what was held then is free again.
    fitting = min((floor + extra - least) // found.slot_bytes + TOP_K, LAYERS * EXPERTS)
    scratch = planned(tiny.store, Budget(slots=TOP_K)).scratch_bytes
    assert found.full_slots == fitting or found.scratch_bytes > scratch


def test_without_a_promise_a_past_peak_refuses_nothing(tiny: TinyStore) -> None:
    least = planned(tiny.store).floor_bytes
    peak = least + 40 * MIB
    small = Memory(GIB, least + budget.MARGIN_BYTES, None, None, "free memory")
    found = planned(tiny.store, memory=small, peak_bytes=least + 300 * MIB)
    assert found.full_slots == TOP_K and found.budget_bytes == least + 300 * MIB
    pinned = planned(tiny.store, Budget(slots=TOP_K), peak_bytes=peak)
    assert pinned.budget_bytes == peak == pinned.floor_bytes
    assert pinned.planned_bytes == least


def test_the_process_counts_once_for_a_second_engine(tiny: TinyStore) -> None:
    """What is resident counts, not the peak: an engine that was closed takes no slot away."""
    ram = Budget(ram_bytes=planned(tiny.store).floor_bytes + 5 * planned(tiny.store).slot_bytes)
    before = planned(tiny.store, ram)
    assert planned(tiny.store, ram, peak_bytes=before.budget_bytes).slots == before.slots
