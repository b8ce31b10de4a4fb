"""How much of a device's memory there is for experts.

Owns the division of VRAM, pure; what a device has free is told to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashmoe.errors import BudgetError
from flashmoe.stream.units import format_bytes

MARGIN_BYTES = 512 << 20
"""Left to others where no limit is given: a desktop, the driver's own growth."""

SCRATCH_BYTES = 64 << 20
"""Activations of a token, tables, compiled kernels and the pool's slack."""


@dataclass(frozen=True)
class Room:
    """What is planned of a device's memory, in bytes."""

    trunk_bytes: int
    timelines_bytes: int
    slots: int
    slot_bytes: int

    @property
    def planned_bytes(self) -> int:
        """All of it."""
        fixed = self.trunk_bytes + self.timelines_bytes + SCRATCH_BYTES
        return fixed + self.slots * self.slot_bytes


def divided(
    limit_bytes: int | None,
    free_bytes: int,
    *,
    trunk_bytes: int,
    timelines_bytes: int,
    slot_bytes: int,
    least: int,
    most: int,
) -> Room:
    """The plan within ``limit_bytes``, or None: within what is free less a margin.

    There are ``least`` slots at least (one token's experts), and ``most`` if all experts fit.

    Raises:
        BudgetError: the floor does not fit, or the limit is more than is free.
    """
    usable = max(free_bytes - MARGIN_BYTES, 0) if limit_bytes is None else limit_bytes
    least_bytes = Room(trunk_bytes, timelines_bytes, least, slot_bytes).planned_bytes
    parts = (
        f"{format_bytes(trunk_bytes)} trunk, {format_bytes(timelines_bytes)} timelines, "
        f"{format_bytes(least * slot_bytes)} for one token's {least} experts of a layer and "
        f"{format_bytes(SCRATCH_BYTES)} besides"
    )
    if usable < least_bytes:
        given = "are free but for a margin" if limit_bytes is None else "are given (--vram)"
        raise BudgetError(
            f"the GPU must hold at least {format_bytes(least_bytes)} ({parts}), and "
            f"{format_bytes(usable)} {given}: give more, or a shorter context, or run with "
            "--kernels cpu"
        )
    if usable > free_bytes:
        raise BudgetError(
            f"--vram is {format_bytes(usable)}, and the GPU has {format_bytes(free_bytes)} free: "
            "give less, or end what else uses it"
        )
    slots = least + (usable - least_bytes) // slot_bytes
    return Room(trunk_bytes, timelines_bytes, min(slots, most), slot_bytes)
