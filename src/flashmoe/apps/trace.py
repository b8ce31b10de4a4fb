"""``trace``: the analysis of a routing log, as tables or as JSON.

Owns the choice of figures and their wording; ``routing`` computes them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashmoe.apps import routing, terminal
from flashmoe.apps.routing_log import RoutingLog, read
from flashmoe.quant import Array
from flashmoe.stream.units import parse_bytes

if TYPE_CHECKING:
    from rich.table import Table

SHARES = (0.50, 0.80, 0.95)
FRACTIONS = (0.10, 0.17, 0.25, 0.50)
"""Of all experts: the slots replayed where neither flag nor log says how many there were."""

BUSIEST = 10
"""How many experts the table of frequencies lists."""


def trace(
    path: Path, slots: int | None, record_bytes: str | None, plot: Path | None, *, as_json: bool
) -> None:
    """Print the analysis of a log; draw its heat map where ``plot`` says."""
    log = read(path)
    if record_bytes is not None:
        sizes = (parse_bytes(record_bytes),) * log.header.layers
        log = replace(log, header=replace(log.header, record_bytes=sizes))
    if plot is not None:
        from flashmoe.apps import heatmap  # matplotlib is an extra

        heatmap.draw(routing.frequencies(log), path.name, plot)
    found = analysis(log, slots)
    if as_json:
        terminal.write(json.dumps(found, indent=1) + "\n")
    else:
        terminal.show(*_report(log, found))


def analysis(log: RoutingLog, slots: int | None) -> dict[str, Any]:
    """Every figure, as a JSON object. Shares and rates are from 0 to 1, distances in tokens."""
    header, counts = log.header, routing.frequencies(log)
    distances = routing.reuse_distances(log)
    quantiles = np.quantile(distances, (0.5, 0.9)).tolist() if len(distances) else [None, None]
    replays = [routing.replay(log, count) for count in _slot_counts(log, slots)]
    return {
        "tokens": len(log.ids),
        "prompt_tokens": log.prompt_tokens,
        **asdict(header),
        "experts_total": header.layers * header.experts,
        "experts_used": int((counts > 0).sum()),
        "busiest_quarter_share": routing.busiest_quarter(counts),
        "busiest": _busiest(counts),
        "coverage": [
            asdict(routing.coverage(counts, share, header.record_bytes)) for share in SHARES
        ],
        "overlap": routing.overlap(log),
        "reuse_distance": {
            "median": quantiles[0],
            "p90": quantiles[1],
            "histogram": _histogram(distances),
        },
        "replay": [{**asdict(one), "hit_rate": one.hit_rate} for one in replays],
    }


def _slot_counts(log: RoutingLog, slots: int | None) -> list[int]:
    total = log.header.layers * log.header.experts
    slots = slots or log.header.slots
    if slots is not None:
        return [min(slots, total)]
    return [max(int(total * fraction), 1) for fraction in FRACTIONS]


def _busiest(counts: Array) -> list[dict[str, Any]]:
    total = int(counts.sum())
    order = np.argsort(-counts, axis=None, kind="stable")[:BUSIEST]
    places = zip(*np.unravel_index(order, counts.shape), strict=True)
    return [
        {
            "layer": int(layer),
            "expert": int(expert),
            "count": int(counts[layer, expert]),
            "share": int(counts[layer, expert]) / total,
        }
        for layer, expert in places
        if counts[layer, expert]
    ]


def _histogram(distances: Array) -> list[dict[str, int]]:
    """Distances in ranges that double: 1, 2, 3 to 4, 5 to 8, …"""
    if not len(distances):
        return []
    bins = np.ceil(np.log2(distances)).astype(int)
    return [
        {"from": 2**b // 2 + 1 if b else 1, "to": 2**b, "count": int(count)}
        for b, count in enumerate(np.bincount(bins).tolist())
    ]


def _report(log: RoutingLog, found: dict[str, Any]) -> list[Table | str]:
    header = log.header
    tokens = f"{found['tokens']} tokens ({log.prompt_tokens} of prompts)"
    lines: list[Table | str] = [
        f"{tokens}, {header.layers} layers, {header.experts} experts, top-{header.top_k}; "
        f"{found['experts_used']} of {found['experts_total']} experts were used, the busiest "
        f"quarter took {found['busiest_quarter_share']:.1%} of activations",
    ]
    if found["overlap"] is not None:
        lines.append(f"overlap from one token to the next: {found['overlap']:.1%}")
    lines += ["", _frequency(found), "", _coverage(found), "", _misses(found)]
    reuse = found["reuse_distance"]
    if reuse["histogram"]:
        median, p90 = reuse["median"], reuse["p90"]
        lines += ["", _distances(reuse), f"median {median:g} tokens, 90 % within {p90:g}"]
    return lines


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _frequency(found: dict[str, Any]) -> Table:
    table = _table("busiest experts", "layer", "expert", "activations", "share")
    for one in found["busiest"]:
        share = f"{one['share']:.2%}"
        table.add_row(str(one["layer"]), str(one["expert"]), str(one["count"]), share)
    return table


def _coverage(found: dict[str, Any]) -> Table:
    table = _table("experts that cover", "activations", "experts", "of all", "size")
    for one in found["coverage"]:
        size = "?" if one["bytes"] is None else f"{one['bytes'] / 1e9:.3g} GB"
        part = one["experts"] / found["experts_total"]
        table.add_row(f"{one['share']:.0%}", str(one["experts"]), f"{part:.1%}", size)
    return table


def _misses(found: dict[str, Any]) -> Table:
    table = _table(
        "replayed through the cache", "slots", "of all", "hits", "rate", "cold", "capacity"
    )
    for one in found["replay"]:
        part = f"{one['slots'] / found['experts_total']:.1%}"
        cells = (one["slots"], part, one["hits"], f"{one['hit_rate']:.1%}", one["cold"])
        table.add_row(*map(str, cells), str(one["capacity"]))
    return table


def _distances(reuse: dict[str, Any]) -> Table:
    table = _table("reuse of an expert", "tokens later", "uses", "share")
    total = sum(one["count"] for one in reuse["histogram"])
    for one in reuse["histogram"]:
        span = str(one["to"]) if one["from"] == one["to"] else f"{one['from']} to {one['to']}"
        table.add_row(span, str(one["count"]), f"{one['count'] / total:.1%}")
    return table
