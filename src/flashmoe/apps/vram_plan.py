"""The plan of a GPU's memory: as a table, and as JSON.

Owns the wording and the keys; every number is :mod:`flashmoe.stream.tiers.room`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashmoe.stream.budget import Plan
from flashmoe.stream.tiers.room import Room
from flashmoe.stream.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class VramPlan:
    """``room`` of the memory of ``gpu``, beside the ``plan`` of the host's; bytes ``free_bytes``
    there before it is taken, ``total_bytes`` in all."""

    gpu: str
    free_bytes: int
    total_bytes: int
    room: Room
    plan: Plan

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        room = self.room
        return {
            "gpu": self.gpu,
            "free_bytes": self.free_bytes,
            "total_bytes": self.total_bytes,
            "trunk_bytes": room.trunk_bytes,
            "timelines_bytes": room.timelines_bytes,
            "scratch_bytes": room.scratch_bytes,
            "chunk_tokens": room.chunk_tokens,
            "slots": room.slots,
            "slot_bytes": room.slot_bytes,
            "planned_bytes": room.planned_bytes,
        }

    def table(self) -> Table:
        """For a person."""
        from rich.table import Table

        room, plan = self.room, self.plan
        table = Table(box=None, show_header=False)
        table.add_column()
        table.add_column(justify="right")
        table.add_column()
        sessions = "1 session" if plan.sessions == 1 else f"{plan.sessions} sessions"
        timelines = f"state and KV, {sessions} full, of {plan.context_tokens} tokens"
        slots = (
            f"{room.slots} of {plan.experts_total} experts, {format_bytes(room.slot_bytes)} each"
        )
        table.add_row("trunk", format_bytes(room.trunk_bytes), "always resident")
        table.add_row("timelines", format_bytes(room.timelines_bytes), timelines)
        scratch = f"a chunk of {room.chunk_tokens} tokens, tables, compiled kernels"
        table.add_row("scratch", format_bytes(room.scratch_bytes), scratch)
        table.add_row("slots", format_bytes(room.slots * room.slot_bytes), slots)
        table.add_section()
        table.add_row("planned", format_bytes(room.planned_bytes), self._of())
        return table

    def _of(self) -> str:
        free, total = format_bytes(self.free_bytes), format_bytes(self.total_bytes)
        return f"of {free} free, {total} in all"
