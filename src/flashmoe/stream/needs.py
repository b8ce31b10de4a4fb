"""What an engine is to have in memory, and how large that is at the least.

Owns the parts of a plan but the slots, from the options and the store. Does not own the formulas
(``sizes``) or the division (``budget``).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels import reference
from flashmoe.options import DEFAULT_CONTEXT_TOKENS, Budget
from flashmoe.shape import ModelShape
from flashmoe.store.reader import Store
from flashmoe.stream import chunks
from flashmoe.stream.sizes import Outlay

ALLOWANCE_BYTES = 24 << 20
"""For what no formula counts: slack of the allocator, thread stacks, the cache's tables."""


def outlay(
    shape: ModelShape,
    budget: Budget,
    *,
    float_bytes: int,
    experts_per_token: int | None = None,
    scratch_block_bytes: int | None = None,
    on_device: bool = False,
) -> Outlay:
    """The sizes that ``budget.plan`` divides by, of the same arguments.

    Raises:
        InputError: a context longer than the model's own limit.
    """
    if scratch_block_bytes is None:
        scratch_block_bytes = reference.block_bytes(np.dtype(f"f{float_bytes}"))
    experts = replace(shape.experts, top_k=experts_per_token or shape.experts.top_k)
    return Outlay(
        replace(shape, experts=experts),
        context_tokens=_context(shape, budget),
        sessions=budget.sessions,
        float_bytes=float_bytes,
        block_bytes=scratch_block_bytes,
        kv=budget.kv,
        on_device=on_device,
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


@dataclass(frozen=True)
class Needs:
    """What is to be in memory, with the least number of slots, and how large it is.

    ``chunk_tokens`` None leaves the size of a chunk to a choice, which may be the shortest.
    """

    store: Store
    outlay: Outlay
    slots: int
    chunk_tokens: int | None
    process_bytes: int
    peak_bytes: int
    prefix_bytes: int = 0
    host_bytes: int = 0

    def constant(self) -> dict[str, int]:
        """What is there all the time, by its name in ``budget.Plan``."""
        outlay = self.outlay
        return {
            "process_bytes": self.process_bytes,
            "host_bytes": self.host_bytes,
            "allowance_bytes": ALLOWANCE_BYTES,
            "trunk_bytes": outlay.trunk_bytes(self.store),
            "state_bytes": outlay.sessions * outlay.state_bytes,
            "prefix_bytes": self.prefix_bytes,
        }

    def kept(self) -> dict[str, int]:
        """The same with full timelines."""
        outlay = self.outlay
        kv_bytes = outlay.sessions * outlay.kv_bytes(outlay.context_tokens)
        return {**self.constant(), "kv_bytes": kv_bytes}

    def parts(self, size: int) -> dict[str, int]:
        """The same while a chunk of a size passes: everything but the slots."""
        tokens = chunks.longest(size, self.outlay.context_tokens)
        return {**self.kept(), "scratch_bytes": self.outlay.scratch_bytes(tokens)}

    def fixed_bytes(self, size: int) -> int:
        """The sum of these."""
        return sum(self.parts(size).values())

    @property
    def least_size(self) -> int:
        """Of a chunk: the shortest that may be chosen, or what was asked for."""
        return min(self.chunk_tokens or chunks.LEAST_TOKENS, self.outlay.context_tokens)

    @property
    def record_bytes(self) -> list[int]:
        """Of an expert, a layer each."""
        return [entry.layout.record_bytes for entry in self.store.manifest.layers]

    @property
    def slot_bytes(self) -> int:
        """Of the largest of them."""
        return max(self.record_bytes)

    @property
    def experts_total(self) -> int:
        """In all layers."""
        return len(self.record_bytes) * self.store.shape.experts.count

    @property
    def least_bytes(self) -> int:
        """Everything with the least slots."""
        return self.fixed_bytes(self.least_size) + self.slots * self.slot_bytes

    @property
    def floor_bytes(self) -> int:
        """The same, or the peak that was reached before."""
        return max(self.least_bytes, self.peak_bytes)

    def most(self, field: Literal["context_tokens", "sessions"], limit_bytes: int) -> int:
        """The most of ``field`` that fits, or 0; sizes grow with it."""
        if limit_bytes < self.peak_bytes:
            return 0

        def least_bytes(number: int) -> int:
            changed: Any = {field: number}
            return replace(self, outlay=replace(self.outlay, **changed)).least_bytes

        return bisect_right(range(1, getattr(self.outlay, field)), limit_bytes, key=least_bytes)
