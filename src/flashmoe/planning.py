"""The plan of a store on this machine, as it stands now.

Owns what the plan is told: what the process weighs, what the machine has, which kernels compute.
The division itself is ``stream.budget``'s.
"""

from __future__ import annotations

from dataclasses import replace

from flashmoe import kernels as kernel_sets
from flashmoe.errors import InputError
from flashmoe.model.gpu.opening import planned
from flashmoe.options import Budget, PrefixCache, Runtime
from flashmoe.prefix import cache as prefixes
from flashmoe.shape import ModelShape
from flashmoe.store.reader import Store
from flashmoe.stream import budget as budgets
from flashmoe.stream import memory
from flashmoe.stream.needs import outlay
from flashmoe.stream.sizes import Outlay
from flashmoe.stream.tiers.room import STAGING_SLOTS, Room

GPU_HOST_BYTES = 256 << 20
"""What the driver, its compiler and CuPy take of the host's memory after the plan. Seen: 0.12 GiB
beyond it."""

PROCESS_STEP = 2 << 20
"""What the process uses is rounded up to this: it differs a little from one start to the next,
and a floor that `plan` has printed should not be refused by `run`."""


def plan_store(
    store: Store,
    budget: Budget,
    runtime: Runtime,
    *,
    kernels: kernel_sets.Kernels,
    experts_per_token: int | None = None,
    prefix_cache: PrefixCache | None = None,
) -> budgets.Plan:
    """Plan the memory of a store on this machine, as it stands now.

    Call it after everything else is loaded: what the process has used so far counts.

    Raises:
        BudgetError: the budget is below the floor.
        InputError: the prefix cache is given too little memory.
    """
    floats, kept = kernels.dtype.itemsize, 0
    if prefix_cache is not None:
        context = outlay_of(store, budget, kernels, experts_per_token).context_tokens
        kept = prefixes.memory_bytes(prefix_cache, store.shape, context, floats, budget.kv)
    driver = 0 if kernels.device is None else GPU_HOST_BYTES
    return budgets.plan(
        store,
        budget=budget,
        runtime=runtime,
        float_bytes=floats,
        process_bytes=-(-memory.resident_bytes() // PROCESS_STEP) * PROCESS_STEP + driver,
        peak_bytes=memory.peak_resident_bytes(),
        scratch_block_bytes=kernels.scratch_bytes(store.shape.attention),
        memory=memory.available(),
        experts_per_token=experts_per_token,
        prefix_bytes=kept,
        on_device=kernels.device is not None,
    )


def outlay_of(
    store: Store, budget: Budget, kernels: kernel_sets.Kernels, experts_per_token: int | None
) -> Outlay:
    """The sizes that :func:`plan_store` divides by."""
    return outlay(
        store.shape,
        budget,
        float_bytes=kernels.dtype.itemsize,
        experts_per_token=experts_per_token,
        scratch_block_bytes=kernels.scratch_bytes(store.shape.attention),
        on_device=kernels.device is not None,
    )


def on_device(
    store: Store,
    shape: ModelShape,
    budget: Budget,
    kernels: kernel_sets.Kernels,
    outlay: Outlay,
) -> tuple[Budget, Room | None]:
    """The plan of a GPU's memory, where these kernels have one, and the budget beside it: where
    every expert has a slot there, few are needed in RAM.

    Raises:
        BudgetError: the GPU has no room for this model.
        InputError: ``vram_bytes`` without a GPU.
    """
    if kernels.device is None:
        if budget.vram_bytes is not None:
            raise InputError(
                "--vram (Budget.vram_bytes) is for a GPU, and none was asked for: give "
                "--kernels cuda too, or leave it out"
            )
        return budget, None
    room = planned(store, shape, outlay, kernels.device, budget.vram_bytes)
    if room.whole and budget.slots is None:
        budget = replace(budget, slots=min(max(STAGING_SLOTS, shape.experts.top_k), room.slots))
    return budget, room


def room_of(plan: budgets.Plan, *, promised: bool) -> int:
    """How many sessions there is memory for: those planned, and what is left over."""
    one = (plan.state_bytes + plan.kv_bytes) // plan.sessions
    limit = plan.budget_bytes if promised else plan.usable_bytes
    return plan.sessions + max(limit - plan.planned_bytes, 0) // max(one, 1)


def with_experts(shape: ModelShape, wanted: int | None) -> ModelShape:
    """The shape with so many experts a token; None leaves the model's own.

    Raises:
        InputError: there is no router, or not so many experts.
    """
    if wanted is None:
        return shape
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        raise InputError(f"experts_per_token is {wanted!r}; it must be a whole number")
    if wanted == shape.experts.top_k:
        return shape
    if shape.experts.router != "softmax":
        raise InputError("a dense model has no router: leave --experts-per-token out")
    if not 0 < wanted <= shape.experts.count:
        raise InputError(
            f"--experts-per-token is {wanted}; this model has {shape.experts.count} experts: "
            f"give 1 to {shape.experts.count}"
        )
    return replace(shape, experts=replace(shape.experts, top_k=wanted))
