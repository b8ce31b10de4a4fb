"""How memory is divided before anything is loaded: floor, recommended, slots, and what binds.

Owns the division and the refusal. Measures nothing (``memory`` does), reserves nothing (``slots``
does), and takes the size of each part from ``sizes``.

Invariant: a plan that is returned holds ``floor_bytes <= budget_bytes``, its parts and slots
together are at most ``budget_bytes``, and the process stays under ``budget_bytes``; anything
else is refused with the numbers.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

from flashmoe.errors import BudgetError, InputError
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

_SizesFor: TypeAlias = Callable[[int], dict[str, int]]
"""The parts of a plan for a context of so many tokens."""


@dataclass(frozen=True)
class Plan:
    """A division of memory, in bytes.

    The parts are ``process`` (interpreter, libraries, tokenizer), ``allowance``, ``trunk``,
    ``state`` and ``kv`` (one timeline of ``context_tokens``), ``scratch`` (the arithmetic of one
    chunk) and ``slots`` times ``slot_bytes``; the floor is the same with ``floor_slots``.
    ``usable_bytes`` is all this process could have; ``recommended_bytes`` leaves a margin.
    ``binding`` names what keeps the number of slots from being larger.

    ``expected_bytes_per_token`` is read from SSD for a decoded token under uniform routing in
    the steady state, the worst case for any cache: the share of all experts that is not in a
    slot, times ``routed_bytes_per_token``.
    """

    process_bytes: int
    allowance_bytes: int
    trunk_bytes: int
    state_bytes: int
    kv_bytes: int
    scratch_bytes: int
    slot_bytes: int
    slots: int
    floor_slots: int
    floor_bytes: int
    recommended_bytes: int
    usable_bytes: int
    budget_bytes: int
    context_tokens: int
    chunk_tokens: int
    binding: str
    experts_total: int
    experts_bytes_total: int
    routed_bytes_per_token: int
    expected_bytes_per_token: int

    @property
    def planned_bytes(self) -> int:
        """All parts and slots together."""
        return self.floor_bytes + (self.slots - self.floor_slots) * self.slot_bytes

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
) -> Plan:
    """Divide memory for a store.

    ``process_bytes`` is the peak of the process with everything loaded but the model.
    ``float_bytes`` is the size of an activation. ``experts_per_token`` None is the model's own.

    Raises:
        BudgetError: below the floor; the message has every part, what binds, and the mend.
        InputError: a context longer than the model's own limit.
    """
    context = _context(store.shape, budget)
    sizes_for = partial(_parts, store, runtime, float_bytes, process_bytes)
    parts = sizes_for(context)
    fixed = sum(parts.values())
    records = [entry.layout.record_bytes for entry in store.manifest.layers]
    slot, total = max(records), len(records) * store.shape.experts.count
    top_k = experts_per_token or store.shape.experts.top_k
    floor = fixed + top_k * slot

    usable = memory.usable_bytes
    margin = max(usable // 20, MARGIN_BYTES)
    recommended = max(min(usable - margin, fixed + total * slot), 0)
    limit, source = recommended, memory.binding
    if budget.ram_bytes is not None:
        limit = min(budget.ram_bytes, usable)
        source = "--ram" if budget.ram_bytes <= usable else memory.binding
    if limit < floor:
        raise BudgetError(_refusal(sizes_for, context, top_k * slot, limit, source, usable))
    slots = min((limit - fixed) // slot, total)
    if budget.slots is not None:
        slots, source = _pinned_slots(budget.slots, top_k, slots, total), "--slots"
        if budget.ram_bytes is None:
            limit = fixed + slots * slot
    routed = top_k * sum(records)
    return Plan(
        **parts,
        slot_bytes=slot,
        slots=slots,
        floor_slots=top_k,
        floor_bytes=floor,
        recommended_bytes=recommended,
        usable_bytes=usable,
        budget_bytes=limit,
        context_tokens=context,
        chunk_tokens=min(runtime.chunk_tokens, context),
        binding="all experts fit" if slots == total else source,
        experts_total=total,
        experts_bytes_total=store.shape.experts.count * sum(records),
        routed_bytes_per_token=routed,
        expected_bytes_per_token=routed * (total - slots) // total,
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


def _parts(
    store: Store, runtime: Runtime, float_bytes: int, process_bytes: int, context_tokens: int
) -> dict[str, int]:
    """Everything but the slots, by its name in :class:`Plan`."""
    shape = store.shape
    return {
        "process_bytes": process_bytes,
        "allowance_bytes": ALLOWANCE_BYTES,
        "trunk_bytes": sizes.trunk_bytes(store, float_bytes),
        "state_bytes": sizes.state_bytes(shape, float_bytes),
        "kv_bytes": sizes.kv_bytes(shape, context_tokens, float_bytes),
        "scratch_bytes": sizes.scratch_bytes(
            shape,
            chunk_tokens=min(runtime.chunk_tokens, context_tokens),
            context_tokens=context_tokens,
            threads=runtime.threads or os.cpu_count() or 1,
            float_bytes=float_bytes,
        ),
    }


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


def _refusal(
    sizes_for: _SizesFor, context: int, slots_bytes: int, limit: int, source: str, usable: int
) -> str:
    """Why a budget is refused: the parts, what binds, and what would be accepted."""
    parts = {**sizes_for(context), "slots_bytes": slots_bytes}
    floor = sum(parts.values())
    enough = f"{-(-floor // MIB)}MiB"
    mends = [f"free memory or raise the limit to {enough}"]
    if floor <= usable:
        margin = "" if source == "--ram" else ", into the margin left to the machine"
        mends = [f"give --ram {enough} or more{margin}"]
    fits = _fitting_context(sizes_for, context, floor - limit)
    if fits:
        mends.append(f"give --context {fits} or less instead of {context}")
    names = {name: name.removesuffix("_bytes") for name in parts}
    listed = ", ".join(f"{names[name]} {format_bytes(size)}" for name, size in parts.items())
    return (
        f"{format_bytes(limit)} ({source}) is below the floor of {format_bytes(floor)}: {listed}; "
        f"the largest part is {names[max(parts, key=lambda name: parts[name])]}. "
        f"To go on, {', or '.join(mends)}"
    )


def _fitting_context(sizes_for: _SizesFor, context: int, deficit_bytes: int) -> int:
    """The longest context that saves ``deficit_bytes``, or 0; sizes grow with the context."""
    target = sum(sizes_for(context).values()) - deficit_bytes
    return bisect_right(range(1, context), target, key=lambda n: sum(sizes_for(n).values()))
