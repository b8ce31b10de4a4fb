"""The account of a running engine: within the budget whatever comes, and orderly."""

from __future__ import annotations

import gc
from copy import copy
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flashmoe.errors import BudgetError
from flashmoe.options import Budget, Runtime
from flashmoe.stream import budget, needs
from flashmoe.stream.budget import Plan
from flashmoe.stream.ledger import CALM_PASSES, Ledger
from flashmoe.stream.memory import Memory
from flashmoe.stream.sizes import Outlay
from tests.stream.conftest import TinyStore
from tests.stream.test_sizes import QWEN_397B

MIB, GIB = 1 << 20, 1 << 30
CONTEXT, SLOT = 32_768, 7 * MIB
LEAST = 20


class Timeline:
    """Stands for a session's state."""


OUTLAY = Outlay(QWEN_397B, CONTEXT, 2, 4, 0, "bf16")


def plan_of(outlay: Outlay, least: int = LEAST, extra_bytes: int = 0) -> Plan:
    """With ``least`` slots beside full timelines and a chunk of 256, and some bytes more."""
    kv = outlay.sessions * outlay.kv_bytes(outlay.context_tokens)
    scratch, step = outlay.scratch_bytes(258), outlay.pass_bytes(1)
    constant = 90 * MIB + 24 * MIB + GIB + outlay.sessions * outlay.state_bytes
    total = 60 * 512
    limit = constant + kv + scratch + least * SLOT + extra_bytes
    return Plan(
        process_bytes=90 * MIB,
        host_bytes=0,
        allowance_bytes=24 * MIB,
        trunk_bytes=GIB,
        state_bytes=outlay.sessions * outlay.state_bytes,
        kv_bytes=kv,
        scratch_bytes=scratch,
        step_scratch_bytes=step,
        prefix_bytes=0,
        slot_bytes=SLOT,
        slots=min((limit - constant - step) // SLOT, total),
        full_slots=least,
        page_cache_bytes=0,
        floor_slots=10,
        floor_bytes=limit,
        peak_bytes=0,
        recommended_bytes=limit,
        usable_bytes=limit,
        budget_bytes=limit,
        context_tokens=outlay.context_tokens,
        sessions=outlay.sessions,
        chunk_tokens=256,
        binding="--ram",
        experts_total=total,
        experts_bytes_total=total * SLOT,
        routed_bytes_per_token=600 * SLOT,
        expected_bytes_per_token=0,
    )


PLAN = plan_of(OUTLAY, extra_bytes=3 * GIB)


def ledger(plan: Plan = PLAN, chunk_tokens: int | None = None) -> Ledger:
    return Ledger(plan, OUTLAY, LEAST, chunk_tokens)


def test_an_empty_ledger_allows_what_the_plan_begins_with() -> None:
    assert ledger().slots(1) == PLAN.slots
    assert ledger().settle(1, PLAN.slots) == PLAN.slots


def test_keys_and_values_take_slots_as_they_come_and_give_them_back_when_they_go() -> None:
    account, one = ledger(), Timeline()
    account.charge(one, 5000)
    held = OUTLAY.kv_bytes(5000)
    assert account.kv_bytes == held > 0
    left = PLAN.slots - account.slots(1)
    assert held / SLOT - 1 < left < held / SLOT + 1
    account.charge(one, 100)  # rewound: what was touched stays
    assert account.kv_bytes == held
    del one
    gc.collect()
    assert account.kv_bytes == 0 and account.slots(1) == PLAN.slots


def test_slots_go_at_once_and_come_back_after_some_passes() -> None:
    account = ledger()
    fewer = account.settle(2000, PLAN.slots)
    assert fewer == account.slots(2000) < PLAN.slots
    for _ in range(CALM_PASSES - 1):
        assert account.settle(1, fewer) == fewer
    assert account.settle(1, fewer) == PLAN.slots
    for _ in range(3 * CALM_PASSES):  # another timeline's prompt between the steps
        assert account.settle(1, fewer) == fewer
        assert account.settle(2000, fewer) == fewer


def test_between_passes_slots_only_go() -> None:
    account = ledger()
    for _ in range(2 * CALM_PASSES):
        assert account.settle(0, 100) == 100
    account.lend(200 * MIB)
    lent = account.settle(0, PLAN.slots)
    assert lent == account.slots(0) < PLAN.slots
    account.lend(-200 * MIB)
    assert account.slots(0) == PLAN.slots
    assert account.settle(0, lent) == lent


def test_timelines_beyond_the_planned_ones_take_room_for_their_state() -> None:
    account, more = ledger(), [Timeline() for _ in range(3)]
    for one in more[:2]:
        account.charge(one, 1)
    before = account.slots(1)
    account.charge(more[2], 1)
    state = OUTLAY.state_bytes + OUTLAY.kv_bytes(1)
    assert state / SLOT - 1 <= before - account.slots(1) <= state / SLOT + 1


def test_a_chunk_is_as_asked_for_or_chosen_for_what_is_free() -> None:
    one = Timeline()
    assert ledger(chunk_tokens=100).chunk(one, 30, 1000) == 70
    assert ledger(chunk_tokens=100).chunk(one, 30, 31) == 1
    roomy, tight = ledger(), ledger(plan_of(OUTLAY))
    assert roomy.chunk(one, 0, 30) == 30
    assert tight.chunk(one, 0, 30) == 30
    for account in (roomy, tight):
        account.charge(one, CONTEXT)
        account.charge(other := Timeline(), CONTEXT)
        assert account.chunk(one, 0, CONTEXT) >= 256
        del other
    full = ledger(plan_of(OUTLAY))
    full.charge(one, CONTEXT)
    full.charge(two := Timeline(), CONTEXT)
    assert full.chunk(two, 0, CONTEXT) <= 320, "hardly more fits beside full timelines"


def test_choosing_a_chunk_charges_nothing() -> None:
    account, one = ledger(), Timeline()
    account.charge(one, 10)
    held = account.kv_bytes
    account.chunk(one, 10, 20_000)
    assert account.kv_bytes == held


class Life(RuleBasedStateMachine):
    """Timelines come, grow, pass in chunks and go; never is more in use than the budget."""

    def __init__(self) -> None:
        super().__init__()
        self.account = ledger()
        self.slots = PLAN.slots
        self.timelines: list[tuple[Timeline, int]] = []
        self.constant = PLAN.budget_bytes - self.account._room_bytes
        self.scratch = self.lent = 0

    @precondition(lambda self: len(self.timelines) < 2)
    @rule()
    def come(self) -> None:
        self.timelines.append((Timeline(), 0))

    @precondition(lambda self: self.timelines)
    @rule(tokens=st.integers(1, 9000), which=st.integers(0, 1))
    def pass_tokens(self, tokens: int, which: int) -> None:
        which %= len(self.timelines)
        one, position = self.timelines[which]
        total = min(position + tokens, CONTEXT)
        if position == total:
            return
        taken = self.account.chunk(one, position, total)
        assert 1 <= taken <= total - position
        self.account.charge(one, position + taken)
        self.slots = self.account.settle(taken, self.slots)
        self.scratch = OUTLAY.pass_bytes(taken)
        self.timelines[which] = one, position + taken
        self.check()
        self.scratch = 0

    @precondition(lambda self: self.timelines)
    @rule(which=st.integers(0, 1))
    def go(self, which: int) -> None:
        del self.timelines[which % len(self.timelines)]

    @rule()
    def save(self) -> None:
        nbytes = OUTLAY.copied_bytes(CONTEXT)
        self.account.lend(nbytes)
        self.lent = nbytes
        self.slots = self.account.settle(0, self.slots)
        self.check()
        self.account.lend(-nbytes)
        self.lent = 0

    @invariant()
    def check(self) -> None:
        held = sum(OUTLAY.kv_bytes(tokens) for _, tokens in self.timelines)
        used = self.constant + held + self.scratch + self.lent + self.slots * SLOT
        assert used <= PLAN.budget_bytes
        assert LEAST <= self.slots <= PLAN.slots


TestLife = Life.TestCase


@given(
    ram=st.integers(0, 3 * GIB),
    context=st.sampled_from([256, 4096, 262_144]),
    kv=st.sampled_from(["f32", "bf16", "int8"]),
)
def test_full_timelines_and_the_shortest_chunk_fit_every_plan(
    tiny: TinyStore, ram: int, context: int, kv: str
) -> None:
    """The plan's promise, kept by the ledger: at the end of the context it has the least slots."""
    shape = replace(tiny.store.shape, max_context_tokens=context)
    store = copy(tiny.store)
    store.manifest = replace(tiny.store.manifest, shape=shape)
    machine = Memory(64 * GIB, 32 * GIB, None, None, "free memory")
    wanted = Budget(context_tokens=context, kv=kv)

    def planned(wanted: Budget) -> Plan:
        return budget.plan(
            store,
            budget=wanted,
            runtime=Runtime(),
            float_bytes=4,
            process_bytes=90 * MIB,
            memory=machine,
        )

    floor = planned(replace(wanted, slots=store.shape.experts.top_k)).floor_bytes
    found = planned(replace(wanted, ram_bytes=floor + ram))
    outlay = needs.outlay(shape, wanted, float_bytes=4)
    account, one = Ledger(found, outlay, found.floor_slots, None), Timeline()
    account.charge(one, context)
    chunk = account.chunk(one, 0, context)
    used = found.planned_bytes - found.full_slots * found.slot_bytes - found.scratch_bytes
    slots = account.settle(chunk, found.slots)
    assert used + outlay.pass_bytes(chunk) + slots * found.slot_bytes <= found.budget_bytes
    assert slots >= found.floor_slots


def test_pages_that_are_touched_are_counted_and_never_more_than_there_are() -> None:
    whole = OUTLAY.kv_bytes(CONTEXT)
    assert whole == 15 * 2 * 2 * 256 * 2 * CONTEXT
    assert OUTLAY.kv_bytes(0) == 0
    heads = 15 * 2 * 2
    assert OUTLAY.kv_bytes(1) == heads * 2 * MIB
    assert OUTLAY.kv_bytes(4096) == heads * 2 * MIB
    assert OUTLAY.kv_bytes(4097) == heads * 4 * MIB
    assert OUTLAY.kv_bytes(10 * CONTEXT) == whole


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
@given(context=st.integers(1, 300_000), part=st.floats(0, 1))
def test_resident_keys_and_values_grow_to_the_whole(kv: str, context: int, part: float) -> None:
    outlay = replace(OUTLAY, context_tokens=context, kv=kv)
    tokens = int(part * context)
    fewer, more = outlay.kv_bytes(tokens), outlay.kv_bytes(tokens + 1)
    assert fewer <= more <= outlay.kv_bytes(context)
    rows = {"f32": 1024, "bf16": 512, "int8": 260}
    assert fewer >= heads_bytes(tokens, rows[kv])
    assert outlay.kv_bytes(context) == heads_bytes(context, rows[kv])


def heads_bytes(tokens: int, row: int) -> int:
    return 15 * 2 * 2 * tokens * row


def test_what_is_given_away_never_comes_back_and_is_refused_where_it_does_not_fit() -> None:
    plan = plan_of(OUTLAY, extra_bytes=10 * SLOT)
    account = Ledger(plan, OUTLAY, LEAST, None)
    account.charge(keeper := Timeline(), CONTEXT)
    before = account.slots(1)
    account.give_away(3 * SLOT, "binding replies")
    assert account.slots(1) == before - 3
    with pytest.raises(BudgetError, match="binding replies takes 56"):
        account.give_away(8 * SLOT, "binding replies")
    assert account.slots(1) == before - 3
    del keeper
