"""What a bench says of a GPU: its ceilings, what a token wants of each tier, and which one binds.

Owns their names and formulas. A token's least times are those that it takes to read what is missing
in memory from disk, to copy what is missing in VRAM there, and to read every weight that it is
multiplied with from VRAM, each at its ceiling. The longest binds, the others hid behind it. What
was copied in vain counts to no limit.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flashmoe.apps.footer import vram_share
from flashmoe.step import Totals

if TYPE_CHECKING:
    from flashmoe.apps.ceilings import Ceilings
    from flashmoe.engine import Engine

KEYS = {
    "gpu": "what computed",
    "vram_bytes_s": "ceiling: a copy within the GPU's memory, bytes read and written",
    "copy_bytes_s": "ceiling: copies from pinned memory to the GPU",
    "vram_bytes": "planned of the GPU's memory",
    "vram_slots": "experts that fit in it at once",
    "vram_hit_rate": "experts found in VRAM, of all those asked for after the first token; "
    "hit_rate is of the rest",
    "copied_bytes_per_token": "copied for a token after the first, what was copied in vain "
    "included",
    "vram_missed_bytes_per_token": "of the experts that were not in VRAM, at the mean record size",
    "ms_copy_wait_per_token": "spent waiting for copies",
    "limit_ms": "the least time of a token, by what binds: disk, copies, vram",
    "binding": "the longest of these",
}
"""The JSON keys in order, and what they mean; they are there where a GPU computes."""

TIERS = {"disk": "the disk", "copies": "copies to the GPU", "vram": "the GPU's memory"}


def figures(
    engine: Engine,
    limits: Ceilings,
    decoded: Sequence[Totals],
    record_bytes: float,
    touched_bytes: float,
    disk_s: float,
) -> dict[str, Any]:
    """By :data:`KEYS`, of the tokens after the first; nothing where no GPU computes.

    ``disk_s`` is the least time of a token's reads.
    """
    share = vram_share(engine)
    if share is None or limits.vram_bytes_s is None or limits.copy_bytes_s is None:
        return {}
    missed = statistics.median(one.vram_misses / one.tokens for one in decoded) * record_bytes
    least = {
        "disk": 1e3 * disk_s,
        "copies": 1e3 * missed / limits.copy_bytes_s,
        "vram": 1e3 * touched_bytes / limits.vram_bytes_s,
    }
    return {
        **vars(share),
        "vram_bytes_s": limits.vram_bytes_s,
        "copy_bytes_s": limits.copy_bytes_s,
        "vram_hit_rate": statistics.median(one.vram_hit_rate for one in decoded),
        "copied_bytes_per_token": statistics.median(o.copied_bytes / o.tokens for o in decoded),
        "vram_missed_bytes_per_token": missed,
        "ms_copy_wait_per_token": statistics.median(o.ms_copy_wait / o.tokens for o in decoded),
        "limit_ms": least,
        "binding": max(least, key=lambda tier: least[tier]),
    }


def ceilings(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """For the table of a bench: what the GPU allows; no rows where there is none."""
    if "gpu" not in found:
        return []
    return [
        ("GPU's memory", f"{found['vram_bytes_s'] / 1e9:.2f} GB/s", found["gpu"]),
        ("copies to it", f"{found['copy_bytes_s'] / 1e9:.2f} GB/s", "from pinned memory"),
    ]


def costs(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """For the same table: what a token had of the tier."""
    if "gpu" not in found:
        return []
    copied, missed = found["copied_bytes_per_token"], found["vram_missed_bytes_per_token"]
    return [
        ("copied a token", f"{copied / 1e9:.3f} GB", f"{missed / 1e9:.3f} GB were not in VRAM"),
        ("hits in VRAM", f"{found['vram_hit_rate']:.1%}", f"{found['vram_slots']} slots"),
        ("copy wait", f"{found['ms_copy_wait_per_token']:.1f} ms", "a token"),
    ]


def allowance(found: dict[str, Any]) -> str:
    """What the limit on decoding follows from."""
    if "gpu" not in found:
        return "what disk and memory allow"
    times = ", ".join(f"{name} {found['limit_ms'][tier]:.3g} ms" for tier, name in TIERS.items())
    return f"{TIERS[found['binding']]} binds: {times}"
