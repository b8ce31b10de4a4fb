"""How much of a device's memory there is for experts.

Owns the division of VRAM, pure; what a device has free is told to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from flashmoe.errors import BudgetError
from flashmoe.stream.units import format_bytes

MARGIN_BYTES = 512 << 20
"""Left to others where no limit is given: a desktop, the driver's own growth."""

SCRATCH_BYTES = 64 << 20
"""Activations of a token, tables, compiled kernels and the pool's slack."""

STAGING_SLOTS = 64
"""Slots in RAM where every expert has one in VRAM: what is on its way from SSD."""

CHUNK_SHARE = 4
"""One part in so many of the memory is for a chunk of a prompt at most, if chunks can be shorter: a
longer one crosses the bus once for more tokens, and leaves room for fewer experts."""

CHUNKS = (4096, 2048, 1024, 512, 256, 128, 64)
"""Lengths of chunks: multiples of 64, so that the choice does not show in the answer."""


@dataclass(frozen=True)
class Room:
    """What is planned of a device's memory, in bytes."""

    trunk_bytes: int
    timelines_bytes: int
    scratch_bytes: int
    slots: int
    slot_bytes: int
    chunk_tokens: int
    experts: int

    @property
    def whole(self) -> bool:
        """Whether every expert of the model has a slot."""
        return self.slots == self.experts

    @property
    def planned_bytes(self) -> int:
        """All of it."""
        fixed = self.trunk_bytes + self.timelines_bytes + self.scratch_bytes
        return fixed + self.slots * self.slot_bytes


def divided(
    limit_bytes: int | None,
    free_bytes: int,
    *,
    trunk_bytes: int,
    timelines_bytes: int,
    chunk_bytes: Callable[[int], int],
    slot_bytes: int,
    least: int,
    most: int,
) -> Room:
    """The plan within ``limit_bytes``, or None: within what is free less a margin.

    ``chunk_bytes`` are those of a chunk of so many tokens. There are ``least`` slots at least, and
    ``most`` if all experts fit.

    Raises:
        BudgetError: the floor does not fit, or the limit is more than is free.
    """
    usable = max(free_bytes - MARGIN_BYTES, 0) if limit_bytes is None else limit_bytes

    def floor_of(tokens: int) -> Room:
        scratch = SCRATCH_BYTES + chunk_bytes(tokens)
        return Room(trunk_bytes, timelines_bytes, scratch, least, slot_bytes, tokens, most)

    floor = floor_of(CHUNKS[-1])
    for tokens in CHUNKS:
        made = floor_of(tokens)
        if chunk_bytes(tokens) <= usable // CHUNK_SHARE and made.planned_bytes <= usable:
            floor = made
            break
    if usable < floor.planned_bytes:
        given = "are free but for a margin" if limit_bytes is None else "are given (--vram)"
        raise BudgetError(
            f"the GPU must hold at least {format_bytes(floor.planned_bytes)} "
            f"({format_bytes(trunk_bytes)} trunk, {format_bytes(timelines_bytes)} timelines, "
            f"{format_bytes(floor.scratch_bytes)} activations, "
            f"{format_bytes(least * slot_bytes)} for {least} experts), and "
            f"{format_bytes(usable)} {given}: give more, "
            "or a shorter context, or run with --kernels cpu"
        )
    if usable > free_bytes:
        raise BudgetError(
            f"--vram is {format_bytes(usable)}, and the GPU has {format_bytes(free_bytes)} free: "
            "give less, or end what else uses it"
        )
    slots = min(least + (usable - floor.planned_bytes) // slot_bytes, most)
    return replace(floor, slots=slots)
