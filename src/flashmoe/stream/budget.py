"""How memory is divided before anything is loaded: floor, recommended, slots, and what binds.

Owns the division and the refusal. Measures nothing (``memory`` does), reserves nothing (``slots``
does), and takes the size of each part from ``sizes``.

Invariant: a plan that is returned holds ``floor_bytes <= budget_bytes``, its parts and slots
together are at most ``budget_bytes``, and the process stays under ``budget_bytes``, what it has
reached before included; anything else is refused with the numbers.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from flashmoe.errors import BudgetError, InputError
from flashmoe.kernels import reference
from flashmoe.options import DEFAULT_CONTEXT_TOKENS, Budget, Runtime
from flashmoe.shape import ModelShape
from flashmoe.store.reader import Store
from flashmoe.stream import sizes
from flashmoe.stream.memory import Memory
from flashmoe.stream.units import format_bytes

MIB = 1 << 20

ALLOWANCE_BYTES = 24 * MIB
"""For what no formula counts: slack of the allocator, thread stacks, the cache's tables."""

MARGIN_BYTES = 256 * MIB
"""Least memory a recommended budget leaves to the rest of the machine (else 5 %)."""


@dataclass(frozen=True)
class Plan:
    """A division of memory, in bytes.

    The parts are ``process`` (interpreter, libraries, tokenizer: what is resident before the
    model), ``allowance``, ``trunk``, ``state`` and ``kv`` (``sessions`` timelines of
    ``context_tokens``; ``state`` also what a pass keeps so that it can be undone), ``scratch``
    (the arithmetic of one chunk), ``prefix`` (what the prefix cache holds in memory) and ``slots``
    times ``slot_bytes``. The floor is the same with ``floor_slots``, or ``peak_bytes``, the most
    that the process has held before, where that is more: a peak cannot be taken back.
    ``usable_bytes`` is all this process could have; ``recommended_bytes`` leaves a margin.
    ``binding`` names what keeps the number of slots from being larger. ``page_cache_bytes`` of the
    budget are left to the page cache, which keeps the experts where the options leave that to it;
    there are ``floor_slots`` slots then.

    ``expected_bytes_per_token`` is read from SSD for a decoded token under uniform routing in
    the steady state, the worst case for any cache: the share of all experts that is in neither a
    slot nor the page cache, times ``routed_bytes_per_token``.
    """

    process_bytes: int
    allowance_bytes: int
    trunk_bytes: int
    state_bytes: int
    kv_bytes: int
    scratch_bytes: int
    prefix_bytes: int
    slot_bytes: int
    slots: int
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
        """All parts and slots together."""
        fixed = self.process_bytes + self.allowance_bytes + self.trunk_bytes + self.scratch_bytes
        fixed += self.prefix_bytes
        return fixed + self.state_bytes + self.kv_bytes + self.slots * self.slot_bytes

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
) -> Plan:
    """Divide memory for a store.

    ``process_bytes`` is resident with everything loaded but the model, ``peak_bytes`` the most
    that has been resident so far. ``float_bytes`` is the size of an activation.
    ``experts_per_token`` None is the model's own. ``scratch_block_bytes`` is what the kernels
    hold of weights in floats; None is what the reference ones do, the most of all.
    ``prefix_bytes`` is set aside for the prefix cache.

    Raises:
        BudgetError: below the floor; the message has every part, what binds, and the mend.
        InputError: a context longer than the model's own limit.
    """
    if scratch_block_bytes is None:
        scratch_block_bytes = reference.block_bytes(np.dtype(f"f{float_bytes}"))
    needs = _Needs(
        store,
        context_tokens=_context(store.shape, budget),
        sessions=budget.sessions,
        slots=experts_per_token or store.shape.experts.top_k,
        chunk_tokens=runtime.chunk_tokens,
        float_bytes=float_bytes,
        block_bytes=scratch_block_bytes,
        process_bytes=process_bytes,
        peak_bytes=peak_bytes,
        kv=budget.kv,
        prefix_bytes=prefix_bytes,
    )
    bounds = _bounds(budget, memory, needs)
    if bounds.limit_bytes < needs.least_bytes or (budget.ram_bytes or peak_bytes) < peak_bytes:
        raise BudgetError(_refusal(needs, bounds, memory.usable_bytes))
    if runtime.io == "os":
        return _left_to_page_cache(_divided(needs, bounds, budget, memory.usable_bytes), budget)
    return _divided(needs, bounds, budget, memory.usable_bytes)


@dataclass(frozen=True)
class _Needs:
    """What is to be in memory, with the least number of slots, and how large it is."""

    store: Store
    context_tokens: int
    sessions: int
    slots: int
    chunk_tokens: int
    float_bytes: int
    block_bytes: int
    process_bytes: int
    peak_bytes: int
    kv: str
    prefix_bytes: int

    def parts(self) -> dict[str, int]:
        """Everything but the slots, by its name in :class:`Plan`."""
        shape, context, floats = self.store.shape, self.context_tokens, self.float_bytes
        scratch = sizes.scratch_bytes(
            shape,
            chunk_tokens=min(self.chunk_tokens, context),
            context_tokens=context,
            block_bytes=self.block_bytes,
            float_bytes=floats,
            kv=self.kv,
            sessions=self.sessions,
        )
        copied = sizes.array_bytes(shape, context, floats, self.kv)
        return {
            "process_bytes": self.process_bytes,
            "allowance_bytes": ALLOWANCE_BYTES,
            "trunk_bytes": sizes.trunk_bytes(self.store, floats),
            # Twice: what the last pass began with is kept, to undo it and to write the next into.
            "state_bytes": 2 * self.sessions * sizes.state_bytes(shape, floats),
            "kv_bytes": self.sessions * sizes.kv_bytes(shape, context, floats, self.kv),
            # One session is saved between its passes, others may be while another has a pass.
            "scratch_bytes": max(scratch, copied) if self.sessions == 1 else scratch + copied,
            "prefix_bytes": self.prefix_bytes,
        }

    @property
    def record_bytes(self) -> list[int]:
        """Of an expert, a layer each."""
        return [entry.layout.record_bytes for entry in self.store.manifest.layers]

    @property
    def slot_bytes(self) -> int:
        return max(self.record_bytes)

    @property
    def experts_total(self) -> int:
        return len(self.record_bytes) * self.store.shape.experts.count

    @property
    def fixed_bytes(self) -> int:
        return sum(self.parts().values())

    @property
    def least_bytes(self) -> int:
        return self.fixed_bytes + self.slots * self.slot_bytes

    @property
    def floor_bytes(self) -> int:
        return max(self.least_bytes, self.peak_bytes)

    def most(self, field: Literal["context_tokens", "sessions"], limit_bytes: int) -> int:
        """The most of ``field`` that fits, or 0; sizes grow with it."""
        if limit_bytes < self.peak_bytes:
            return 0

        def least_bytes(number: int) -> int:
            changed: Any = {field: number}
            return replace(self, **changed).least_bytes

        return bisect_right(range(1, getattr(self, field)), limit_bytes, key=least_bytes)


@dataclass(frozen=True)
class _Bounds:
    """How large the process may become, what says so, and what would be recommended."""

    limit_bytes: int
    source: str
    recommended_bytes: int


def _bounds(budget: Budget, memory: Memory, needs: _Needs) -> _Bounds:
    usable = memory.usable_bytes
    all_bytes = needs.fixed_bytes + needs.experts_total * needs.slot_bytes  # more is of no use
    # On a small machine the margin gives way before the floor does.
    margin = min(max(usable // 20, MARGIN_BYTES), max(usable - needs.least_bytes, 0))
    recommended = max(min(usable - margin, max(all_bytes, needs.peak_bytes)), 0)
    if budget.ram_bytes is None:
        return _Bounds(recommended, memory.binding, recommended)
    source = "--ram" if budget.ram_bytes <= usable else memory.binding
    return _Bounds(min(budget.ram_bytes, usable), source, recommended)


def _divided(needs: _Needs, bounds: _Bounds, budget: Budget, usable_bytes: int) -> Plan:
    """The plan itself, where the floor fits."""
    parts, records = needs.parts(), needs.record_bytes
    fixed, slot, total = sum(parts.values()), needs.slot_bytes, needs.experts_total
    limit, source = bounds.limit_bytes, bounds.source
    slots = min((limit - fixed) // slot, total)
    if budget.slots is not None:
        slots, source = _pinned_slots(budget.slots, needs.slots, slots, total), "--slots"
        if budget.ram_bytes is None:
            limit = fixed + slots * slot
    routed = needs.slots * sum(records)
    return Plan(
        **parts,
        slot_bytes=slot,
        slots=slots,
        page_cache_bytes=0,
        floor_slots=needs.slots,
        floor_bytes=needs.floor_bytes,
        peak_bytes=needs.peak_bytes,
        recommended_bytes=bounds.recommended_bytes,
        usable_bytes=usable_bytes,
        budget_bytes=max(limit, needs.peak_bytes),
        context_tokens=needs.context_tokens,
        sessions=needs.sessions,
        chunk_tokens=min(needs.chunk_tokens, needs.context_tokens),
        binding="all experts fit" if slots == total else source,
        experts_total=total,
        experts_bytes_total=needs.store.shape.experts.count * sum(records),
        routed_bytes_per_token=routed,
        expected_bytes_per_token=routed * (total - slots) // total,
    )


def _left_to_page_cache(plan: Plan, budget: Budget) -> Plan:
    """The same division with as few slots as work, and the rest for the page cache."""
    if budget.slots not in (None, plan.floor_slots):
        raise InputError("--io os keeps no experts in slots: leave out --slots, or --io os")
    least = replace(plan, slots=plan.floor_slots)
    left = max(plan.budget_bytes - least.planned_bytes, 0)
    missing = max(plan.experts_bytes_total - left, 0)
    return replace(
        least,
        page_cache_bytes=left,
        binding="--io os",
        expected_bytes_per_token=plan.routed_bytes_per_token * missing // plan.experts_bytes_total,
    )


def _context(shape: ModelShape, budget: Budget) -> int:
    limit, wanted = shape.max_context_tokens, budget.context_tokens
    if wanted is None:
        return min(limit, DEFAULT_CONTEXT_TOKENS)
    if wanted > limit:
        raise InputError(
            f"--context {wanted} exceeds the model's {limit} tokens; give at most that"
        )
    return wanted


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


def _refusal(needs: _Needs, bounds: _Bounds, usable: int) -> str:
    """Why a budget is refused: the parts, what binds, and what would be accepted."""
    limit, source, floor = bounds.limit_bytes, bounds.source, needs.floor_bytes
    parts = {**needs.parts(), "slots_bytes": needs.slots * needs.slot_bytes}
    names = {name: name.removesuffix("_bytes") for name in parts}
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


def _mends(needs: _Needs, bounds: _Bounds, usable: int) -> list[str]:
    """What would be accepted instead, each of them true by itself."""
    limit = bounds.limit_bytes
    enough = f"{-(-needs.floor_bytes // MIB)}MiB"
    mends = [f"free memory or raise the limit to {enough}"]
    if needs.floor_bytes <= usable:
        mends = [f"give --ram {enough} or more"]
    if needs.least_bytes <= limit:
        mends.append("open the engine in a process of its own")
    if context := needs.most("context_tokens", limit):
        mends.append(f"give --context {context} or less instead of {needs.context_tokens}")
    if sessions := needs.most("sessions", limit):
        mends.append(f"plan {sessions} sessions or fewer instead of {needs.sessions}")
    return mends
