"""How memory is divided before anything is loaded: floor, recommended, slots, and what binds.

Owns the division and the refusal. Measures nothing (``memory`` does), reserves nothing (``slots``
does), and takes the size of each part from ``sizes``. What becomes of the division while timelines
grow is ``ledger``'s.

Invariant: a plan that is returned holds ``floor_bytes <= budget_bytes``, its parts and the slots
beside full timelines together are at most ``budget_bytes``, and the process stays under
``budget_bytes``, what it has reached before included; anything else is refused with the numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from flashmoe.errors import BudgetError, InputError
from flashmoe.options import Budget, Runtime
from flashmoe.store.reader import Store
from flashmoe.stream import chunks
from flashmoe.stream.memory import Memory
from flashmoe.stream.needs import Needs, outlay
from flashmoe.stream.units import format_bytes

MIB = 1 << 20

MARGIN_BYTES = 256 * MIB
"""Least memory a recommended budget leaves to the rest of the machine (else 5 %)."""


@dataclass(frozen=True)
class Plan:
    """A division of memory, in bytes.

    The parts are ``process`` (interpreter, libraries, tokenizer: what is resident before the
    model), ``host`` (what the program around the engine sets aside), ``allowance``, ``trunk``,
    ``state`` and ``kv`` (``sessions`` timelines of ``context_tokens``; ``state`` also what a pass
    keeps so that it can be undone), ``scratch`` (the arithmetic of one chunk of ``chunk_tokens``,
    the size for a prompt of that length), ``prefix`` (what the prefix cache holds in memory) and
    ``full_slots`` times ``slot_bytes``.
    That many slots are left when every timeline is full and a chunk passes; ``slots`` are there
    at the start, when none has begun, beside the scratch of a single token,
    ``step_scratch_bytes``. The floor has ``floor_slots`` and the shortest chunk, or is
    ``peak_bytes``, the most that the process has held before, where that is more: a peak cannot
    be taken back. ``usable_bytes`` is all this process could have; ``recommended_bytes`` leaves a
    margin. ``binding`` names what keeps the number of slots from being larger.
    ``page_cache_bytes`` of the budget are left to the page cache, which keeps the experts where
    the options leave that to it; there are ``floor_slots`` slots then.

    ``expected_bytes_per_token`` is read from SSD for a decoded token under uniform routing in
    the steady state, the worst case for any cache: the share of all experts that is in neither
    one of ``slots`` nor the page cache, times ``routed_bytes_per_token``.
    """

    process_bytes: int
    host_bytes: int
    allowance_bytes: int
    trunk_bytes: int
    state_bytes: int
    kv_bytes: int
    scratch_bytes: int
    step_scratch_bytes: int
    prefix_bytes: int
    slot_bytes: int
    slots: int
    full_slots: int
    page_cache_bytes: int
    floor_slots: int
    floor_bytes: int
    peak_bytes: int
    recommended_bytes: int
    usable_bytes: int
    budget_bytes: int
    context_tokens: int
    sessions: int
    chunk_tokens: int
    binding: str
    experts_total: int
    experts_bytes_total: int
    routed_bytes_per_token: int
    expected_bytes_per_token: int

    @property
    def planned_bytes(self) -> int:
        """All parts together, with full timelines and the slots that these leave."""
        fixed = self.process_bytes + self.allowance_bytes + self.trunk_bytes + self.scratch_bytes
        fixed += self.host_bytes + self.prefix_bytes
        return fixed + self.state_bytes + self.kv_bytes + self.full_slots * self.slot_bytes

    def missing(self, slots: int, least: int) -> int | None:
        """Experts that would not be in memory with so many slots; None with fewer than ``least``.

        No more than the plan's own are of use, unless the page cache has what they leave.
        """
        if slots < least:
            return None
        most = self.experts_total if self.page_cache_bytes else self.slots
        return self.experts_total - min(slots, most)

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        return asdict(self)


def plan(
    store: Store,
    *,
    budget: Budget,
    runtime: Runtime,
    float_bytes: int,
    process_bytes: int,
    memory: Memory,
    experts_per_token: int | None = None,
    peak_bytes: int = 0,
    scratch_block_bytes: int | None = None,
    prefix_bytes: int = 0,
    on_device: bool = False,
) -> Plan:
    """Divide memory for a store.

    ``process_bytes`` is resident with everything loaded but the model, ``peak_bytes`` the most
    that has been resident so far. ``float_bytes`` is the size of an activation.
    ``experts_per_token`` None is the model's own. ``scratch_block_bytes`` is what the kernels
    hold of weights in floats; None is what the reference ones do, the most of all.
    ``prefix_bytes`` is set aside for the prefix cache. ``on_device`` says that a device has the
    passes, and the trunk in its own memory.

    Raises:
        BudgetError: below the floor; the message has every part, what binds, and the mend.
        InputError: a context longer than the model's own limit, or a chunk longer than that.
    """
    needs = Needs(
        store,
        outlay(
            store.shape,
            budget,
            float_bytes=float_bytes,
            experts_per_token=experts_per_token,
            scratch_block_bytes=scratch_block_bytes,
            on_device=on_device,
        ),
        slots=experts_per_token or store.shape.experts.top_k,
        chunk_tokens=runtime.chunk_tokens,
        process_bytes=process_bytes,
        peak_bytes=peak_bytes,
        prefix_bytes=prefix_bytes,
        host_bytes=budget.host_bytes,
    )
    _check_chunk(needs)
    bounds = _bounds(budget, memory, needs)
    if bounds.limit_bytes < needs.least_bytes or (budget.ram_bytes or peak_bytes) < peak_bytes:
        raise BudgetError(_refusal(needs, bounds, memory.usable_bytes))
    if runtime.io == "os":
        return _left_to_page_cache(_divided(needs, bounds, budget, memory.usable_bytes), budget)
    return _divided(needs, bounds, budget, memory.usable_bytes)


def _check_chunk(needs: Needs) -> None:
    size, context = needs.chunk_tokens, needs.outlay.context_tokens
    if size is not None and size > context:
        raise InputError(
            f"--chunk-tokens {size}: no more than the context's {context} tokens can pass "
            "together; give that or less, or leave it out"
        )


@dataclass(frozen=True)
class _Bounds:
    """How large the process may become, what says so, and what would be recommended."""

    limit_bytes: int
    source: str
    recommended_bytes: int


def _bounds(budget: Budget, memory: Memory, needs: Needs) -> _Bounds:
    usable = memory.usable_bytes
    size = needs.chunk_tokens or chunks.RESIDENT_TOKENS
    # More is of no use.
    all_bytes = needs.fixed_bytes(size) + needs.experts_total * needs.slot_bytes
    # On a small machine the margin gives way before the floor does.
    margin = min(max(usable // 20, MARGIN_BYTES), max(usable - needs.least_bytes, 0))
    recommended = max(min(usable - margin, max(all_bytes, needs.peak_bytes)), 0)
    if budget.ram_bytes is None:
        return _Bounds(recommended, memory.binding, recommended)
    source = "--ram" if budget.ram_bytes <= usable else memory.binding
    return _Bounds(min(budget.ram_bytes, usable), source, recommended)


def _divided(needs: Needs, bounds: _Bounds, budget: Budget, usable_bytes: int) -> Plan:
    """The plan itself, where the floor fits."""
    records, slot, total = needs.record_bytes, needs.slot_bytes, needs.experts_total
    limit, source, sizes = bounds.limit_bytes, bounds.source, needs.outlay
    pinned, size = budget.slots, needs.least_size
    if pinned is not None:
        fitting = (limit - needs.fixed_bytes(size)) // slot
        pinned, source = _pinned_slots(pinned, needs.slots, fitting, total), "--slots"
    if pinned != needs.slots or budget.ram_bytes is not None:  # else it is to be the floor
        size = _chunk_size(needs, limit, pinned)
    parts, step = needs.parts(size), sizes.pass_bytes(1)
    full = min((limit - sum(parts.values())) // slot, total)
    slots = min((limit - sum(needs.constant().values()) - step) // slot, total)
    if pinned is not None:
        slots = full = pinned
        if budget.ram_bytes is None:
            limit = sum(parts.values()) + pinned * slot
    routed = needs.slots * sum(records)
    return Plan(
        **parts,
        step_scratch_bytes=step,
        slot_bytes=slot,
        slots=slots,
        full_slots=full,
        page_cache_bytes=0,
        floor_slots=needs.slots,
        floor_bytes=needs.floor_bytes,
        peak_bytes=needs.peak_bytes,
        recommended_bytes=bounds.recommended_bytes,
        usable_bytes=usable_bytes,
        budget_bytes=max(limit, needs.peak_bytes),
        context_tokens=sizes.context_tokens,
        sessions=sizes.sessions,
        chunk_tokens=min(size, sizes.context_tokens),
        binding="all experts fit" if full == total else source,
        experts_total=total,
        experts_bytes_total=needs.store.shape.experts.count * sum(records),
        routed_bytes_per_token=routed,
        expected_bytes_per_token=routed * (total - slots) // total,
    )


def _chunk_size(needs: Needs, limit_bytes: int, pinned: int | None) -> int:
    """The size of chunk for a prompt that fills the context, in what the rest leaves."""
    if needs.chunk_tokens is not None:
        return needs.least_size
    total, context = needs.experts_total, needs.outlay.context_tokens
    left = limit_bytes - sum(needs.kept().values())

    def missing(tokens: int) -> int | None:
        slots = (left - needs.outlay.scratch_bytes(tokens)) // needs.slot_bytes
        if slots < (pinned or needs.slots):
            return None
        return total - min(pinned or slots, total)

    return chunks.choose(0, context, missing)


def _left_to_page_cache(plan: Plan, budget: Budget) -> Plan:
    """The same division with as few slots as work, and the rest for the page cache."""
    if budget.slots not in (None, plan.floor_slots):
        raise InputError("--io os keeps no experts in slots: leave out --slots, or --io os")
    least = replace(plan, slots=plan.floor_slots, full_slots=plan.floor_slots)
    left = max(plan.budget_bytes - least.planned_bytes, 0)
    missing = max(plan.experts_bytes_total - left, 0)
    return replace(
        least,
        page_cache_bytes=left,
        binding="--io os",
        expected_bytes_per_token=plan.routed_bytes_per_token * missing // plan.experts_bytes_total,
    )


def _pinned_slots(wanted: int, floor_slots: int, fitting: int, total: int) -> int:
    """The caller's own number of slots; more than there are experts would stay empty."""
    wanted = min(wanted, total)
    if wanted < floor_slots:
        raise BudgetError(
            f"--slots {wanted} is below the floor: one layer of a token needs {floor_slots}; "
            f"give --slots {floor_slots} or more"
        )
    if wanted > fitting:
        raise BudgetError(
            f"--slots {wanted} does not fit: the budget has room for {fitting}; "
            f"give --slots {fitting} or less, or more --ram"
        )
    return wanted


def _refusal(needs: Needs, bounds: _Bounds, usable: int) -> str:
    """Why a budget is refused: the parts, what binds, and what would be accepted."""
    limit, source, floor = bounds.limit_bytes, bounds.source, needs.floor_bytes
    parts = {**needs.parts(needs.least_size), "slots_bytes": needs.slots * needs.slot_bytes}
    names = {name: name.removesuffix("_bytes") for name in parts}
    names["host_bytes"] = "requests"  # of a server: the one program that sets some aside
    listed = ", ".join(
        f"{names[name]} {format_bytes(size)}" for name, size in parts.items() if size
    )
    largest = names[max(parts, key=lambda name: parts[name])]
    why = f"{listed}; the largest part is {largest}"
    if needs.peak_bytes > needs.least_bytes:
        why = (
            "this process has held as much before, and a peak cannot be taken back "
            f"(its parts are no more than {format_bytes(needs.least_bytes)}: {why})"
        )
    return (
        f"{format_bytes(limit)} ({source}) is below the floor of {format_bytes(floor)}: {why}. "
        f"To go on, {', or '.join(_mends(needs, bounds, usable))}"
    )


def _mends(needs: Needs, bounds: _Bounds, usable: int) -> list[str]:
    """What would be accepted instead, each of them true by itself."""
    limit = bounds.limit_bytes
    enough = f"{-(-needs.floor_bytes // MIB)}MiB"
    mends = [f"free memory or raise the limit to {enough}"]
    if needs.floor_bytes <= usable:
        mends = [f"give --ram {enough} or more"]
    if needs.least_bytes <= limit:
        mends.append("open the engine in a process of its own")
    if needs.chunk_tokens and replace(needs, chunk_tokens=None).least_bytes <= limit:
        mends.append("leave out --chunk-tokens")
    if context := needs.most("context_tokens", limit):
        mends.append(f"give --context {context} or less instead of {needs.outlay.context_tokens}")
    aside = needs.host_bytes - (needs.least_bytes - limit)
    if needs.peak_bytes <= limit < needs.least_bytes and aside >= MIB:
        mends.append(
            f"set {aside // MIB}MiB or less aside for requests, with a smaller --max-body and "
            "fewer --connections"
        )
    if sessions := needs.most("sessions", limit):
        mends.append(f"plan {sessions} sessions or fewer instead of {needs.outlay.sessions}")
    return mends
