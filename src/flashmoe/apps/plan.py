"""``plan``: how the memory of a store would be divided, without loading it.

Owns the meaning of ``--ram`` and the table; every number is :mod:`flashmoe.stream.budget`'s.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from flashmoe import kernels as kernel_sets
from flashmoe.apps import terminal
from flashmoe.apps.request import Limits
from flashmoe.apps.vram_plan import VramPlan
from flashmoe.errors import InputError
from flashmoe.options import Budget, PrefixCache, Runtime
from flashmoe.planning import on_device, outlay_of, plan_store, with_experts
from flashmoe.store.reader import Store
from flashmoe.stream.budget import Plan
from flashmoe.stream.units import format_bytes, parse_bytes
from flashmoe.words import Words

if TYPE_CHECKING:
    from rich.table import Table

FLOOR, RECOMMENDED = "floor", "recommended"


def budget_of(
    ram: str | None,
    context: int | None,
    slots: int | None,
    top_k: int,
    kv: str = Budget.kv,
) -> Budget:
    """The budget that the flags ask for.

    The floor depends on what the process weighs when it loads, so it cannot be given as a size:
    as many slots as a token needs in one layer (``top_k``) is the same thing.

    Raises:
        InputError: not a size, or flags that exclude each other.
    """
    if ram is None or ram == RECOMMENDED:
        return Budget(context_tokens=context, slots=slots, kv=kv)
    if ram == FLOOR:
        if slots is not None:
            raise InputError("--ram floor is the least number of slots: leave out --slots")
        return Budget(context_tokens=context, slots=top_k, kv=kv)
    return Budget(parse_bytes(ram), context_tokens=context, slots=slots, kv=kv)


def plan(
    name: str,
    limits: Limits,
    runtime: Runtime,
    kernels: str = "auto",
    *,
    prefix_cache: PrefixCache | None = None,
    as_json: bool,
) -> None:
    """Print the plan of a store, as ``run`` with the same flags would make it.

    Raises:
        StoreError, BudgetError, InputError: as ``run`` would refuse.
        DeviceError: there is no GPU to plan for.
    """
    store = Store.open(name, runtime.store_dirs)
    chosen = kernel_sets.choose(kernels, "float32", runtime.resolved_threads)
    words = Words(store)  # what it weighs counts
    shape = with_experts(store.shape, limits.experts)
    top_k = shape.experts.top_k
    budget = budget_of(limits.ram, limits.context, limits.slots, top_k, limits.kv)
    budget = replace(budget, vram_bytes=limits.vram_bytes)
    outlay = outlay_of(store, budget, chosen, top_k)
    budget, room = on_device(store, shape, budget, chosen, outlay)
    found = plan_store(
        store,
        budget,
        runtime,
        kernels=chosen,
        experts_per_token=top_k,
        prefix_cache=prefix_cache,
    )
    vram = None
    if chosen.device is not None and room is not None:
        vram = VramPlan(chosen.device.name, *chosen.device.memory(), room, found)
    del words
    if as_json:
        told = found.to_json() | ({} if vram is None else {"vram": vram.to_json()})
        terminal.write(json.dumps(told, indent=1) + "\n")
    else:
        terminal.show(_parts(found, on_device=vram is not None), "", *_lines(found))
        if vram is not None:
            terminal.show("", f"in VRAM of {vram.gpu}:", vram.table())


def _parts(plan: Plan, *, on_device: bool) -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    sessions = "1 session" if plan.sessions == 1 else f"{plan.sessions} sessions"
    slots = f"{plan.full_slots} of {plan.experts_total} experts beside these"
    scratch = f"a chunk of {plan.chunk_tokens} tokens"
    if plan.chunk_tokens > 1:
        scratch += f"; {format_bytes(plan.step_scratch_bytes)} for a single one"
    parts = (
        ("process", plan.process_bytes, "interpreter, libraries, tokenizer"),
        ("allowance", plan.allowance_bytes, "what no formula counts"),
        ("trunk", plan.trunk_bytes, "on its way to the GPU" if on_device else "always resident"),
        ("state", plan.state_bytes, f"recurrent layers, {sessions} and what a pass began with"),
        ("KV", plan.kv_bytes, f"{sessions} full, of {plan.context_tokens} tokens"),
        ("scratch", plan.scratch_bytes, scratch),
        *([("prefix", plan.prefix_bytes, "the prefix cache")] if plan.prefix_bytes else []),
        ("slots", plan.full_slots * plan.slot_bytes, slots),
    )
    for name, nbytes, remark in parts:
        table.add_row(name, format_bytes(nbytes), remark)
    table.add_section()
    table.add_row("planned", format_bytes(plan.planned_bytes), "")
    if plan.page_cache_bytes:
        remark = "left to it: it keeps the experts (--io os)"
        table.add_row("page cache", format_bytes(plan.page_cache_bytes), remark)
    return table


def _lines(plan: Plan) -> list[str]:
    usable = format_bytes(plan.usable_bytes)
    floor = f"{plan.floor_slots} slots; `--ram floor`"
    if plan.floor_bytes == plan.peak_bytes:
        floor += "; the peak of loading the tokenizer"
    read = plan.expected_bytes_per_token
    return [
        f"floor        {format_bytes(plan.floor_bytes)} ({floor})",
        f"recommended  {format_bytes(plan.recommended_bytes)} of {usable} usable",
        f"budget       {format_bytes(plan.budget_bytes)}, bound by: {plan.binding}",
        f"slots        {plan.slots} while the context is empty, {plan.full_slots} once it is "
        f"full and a chunk passes; {format_bytes(plan.slot_bytes)} each",
        f"a token reads about {format_bytes(read)} of {format_bytes(plan.routed_bytes_per_token)} "
        "(expected under uniform routing, the worst case)",
    ]
