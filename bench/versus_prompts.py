"""Prompts beside llama.cpp's: which of its ways is the quickest, the limit, and the table.

Owns what differs from a comparison of decoding. llama.cpp is run each way in the first turn, and
the quickest way once more in larger batches where the prompt has so many tokens; each build's
best takes part in the turns that follow. The limit is ``tokens / max(bytes touched once / disk
rate, arithmetic in memory)``: both rates are of the same run, the arithmetic that of the same
prompt in a process that may use all of the machine's memory, what it waits for reads left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from versus_cases import Case, Peer

from flashmoe.apps.prompt_figures import limit_seconds
from flashmoe.stream.units import format_bytes

Figures: TypeAlias = dict[str, Any]

LARGE_BATCH = 2048
"""Tokens: what llama.cpp's users raise its batch to for long prompts."""

RESIDENT = (
    "pp_tok_s", "prompt_ms_arithmetic", "prompt_ms_read_wait", "prompt_bytes", "peak_rss_bytes",
    "slots",
)  # fmt: skip
"""What is kept of the run in memory."""


def best_peers(
    case: Case, peers: tuple[Peer, ...], runs: dict[str, list[Figures]], run: Callable[[Peer], None]
) -> tuple[Peer, ...]:
    """The quickest way of each build, after ``run`` has added what is still to be tried."""
    best = list[Peer]()
    for build in dict.fromkeys(peer.build for peer in peers):
        ways = [peer for peer in peers if peer.build == build]
        found = max(ways, key=lambda peer: runs[peer.name][0]["pp_tok_s"])
        if found.batch_tokens < min(case.prompt_tokens, LARGE_BATCH):
            name = f"{found.name}, {LARGE_BATCH}"
            large = replace(found, name=name, batch_tokens=LARGE_BATCH)
            run(large)
            found = max(found, large, key=lambda peer: runs[peer.name][0]["pp_tok_s"])
        best.append(found)
    return tuple(best)


def add_limit(case: Case, found: dict[str, Figures], resident: Figures | None) -> None:
    """Put limit and share into every side's medians; ``resident`` None: ours was in memory."""
    ours = found["flashmoe"]
    arithmetic = (resident or ours)["prompt_ms_arithmetic"] / 1e3
    limit = case.prompt_tokens / limit_seconds(ours, ours["disk_bytes_s"], arithmetic)
    for side in found.values():
        side["pp_limit_tok_s"], side["pp_share_of_limit"] = limit, side["pp_tok_s"] / limit


def show(case: Case, found: dict[str, Figures], resident: Figures | None) -> None:
    """The table, and what the limit is made of."""
    print(
        f"{'':28} {'prompt':>8} {'range':>15} {'limit':>6} {'GB read':>8} {'RSS GiB':>8} "
        f"{'ours is':>8} {'range':>13} turns"
    )
    for name, one in found.items():
        low, high = one["pp_tok_s_range"]
        line = (
            f"{name:28} {one['pp_tok_s']:8.2f} {low:7.2f}-{high:7.2f} "
            f"{one['pp_share_of_limit']:6.1%} {read_bytes(case, one) / 1e9:8.2f} "
            f"{one['peak_rss_bytes'] / 2**30:8.2f}"
        )
        if "pp_tok_s_ratio" in one:
            low, high = one["pp_tok_s_ratio_range"]
            line += f" {one['pp_tok_s_ratio']:7.2f}x {low:6.2f}-{high:6.2f} {one['turns']}"
        print(line)
    print("\n".join(remarks(case, found["flashmoe"], resident)))


def read_bytes(case: Case, side: Figures) -> float:
    """What a prompt read: of ours the streamer's count, of llama.cpp's the system's."""
    if "prompt_bytes" in side:
        return float(side["prompt_bytes"])
    return float(side["prompt_bytes_per_token"]) * case.prompt_tokens


def remarks(case: Case, ours: Figures, resident: Figures | None) -> list[str]:
    """Where the limit comes from."""
    limit = "none" if case.ram_bytes is None else format_bytes(case.ram_bytes)
    device = ours.get("prompt_device_bytes")
    lines = [
        f"memory limit {limit}, {'cold' if case.cold else 'warm'}; {case.prompt_tokens} tokens; "
        f"limit {ours['pp_limit_tok_s']:.2f} tok/s",
        f"touched once {ours['prompt_touched_bytes'] / 1e9:.2f} GB, of these missing "
        f"{ours['prompt_needed_bytes'] / 1e9:.2f} GB, read {ours['prompt_bytes'] / 1e9:.2f} GB"
        + ("" if device is None else f" ({device / 1e9:.2f} GB says the system)")
        + f", disk {ours['disk_bytes_s'] / 1e9:.2f} GB/s",
        f"arithmetic {(resident or ours)['prompt_ms_arithmetic'] / 1e3:.2f} s in memory, "
        f"{ours['prompt_ms_arithmetic'] / 1e3:.2f} s and {ours['prompt_ms_read_wait'] / 1e3:.2f} s "
        "of waiting for reads here",
    ]
    if resident is not None and resident["prompt_bytes"]:
        lines.append(
            f"memory does not hold all experts: of the run for the arithmetic "
            f"{resident['prompt_ms_read_wait'] / 1e3:.2f} s of waiting for reads were left out"
        )
    return lines
