"""Kept results as lines over commits: what bench/plot.py draws.

Owns which figures are drawn and what they are called; reads no file and draws nothing.
Invariant: a point is the median of all runs of one commit on one machine, and a figure that a
run does not have leaves no point.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from results import Results, Run

Point: TypeAlias = tuple[str, str, float]
"""Panel, line and value."""

CACHE_SHARES = (0.1, 0.17, 0.5)


@dataclass
class Panel:
    """Lines by name; each has (place of the commit, value), in order."""

    title: str
    lines: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


def versus(run: Run) -> Iterator[Point]:
    """Decode and prompt speed a case, ours and the peer's, and the shares of the limit."""
    work = run["arguments"]
    case = work.get("case") or f"{work['shape']}, {work['ram_bytes']} bytes"
    for name, found in run["figures"]["sides"].items():
        side = name if name == "flashmoe" else f"llama.cpp, {name}"
        yield f"decode, tok/s: {case}", side, found["tg_tok_s"]
        yield f"prompt, tok/s: {case}", side, found["pp_tok_s"]
        yield "decode, share of the limit", f"{case}: {side}", found["share_of_limit"]
        if "pp_share_of_limit" in found:
            yield "prompt, share of the limit", f"{case}: {side}", found["pp_share_of_limit"]


def kernels(run: Run) -> Iterator[Point]:
    """The quickest instruction set a format, and the plain read."""
    for form, rates in run["figures"]["gb_s"].items():
        sets = {name: rate for name, rate in rates.items() if name != "read"}
        if sets:
            yield "products, GB/s of weights", form, max(sets.values())
    if "read" in (four := run["figures"]["gb_s"].get("4 bits", {})):
        yield "products, GB/s of weights", "plain read", four["read"]


def disk(run: Run) -> Iterator[Point]:
    """The best rate of each way to read; names end in the depth."""
    best: dict[str, float] = {}
    for name, rate in run["figures"]["gb_s"].items():
        way = name.rpartition("_")[0]
        best[way] = max(best.get(way, 0.0), rate)
    for way, rate in best.items():
        yield "disk, GB/s of records", way, rate


def cache(run: Run) -> Iterator[Point]:
    """Hit rates at a few shares of the experts."""
    trace = run["figures"]["trace"].partition(".")[0]
    for row in run["figures"]["rows"]:
        if row["share"] in CACHE_SHARES:
            for policy in ("ours", "lru", "belady"):
                yield f"hits: {trace}", f"{policy} at {row['share']:.0%}", row[policy]


BENCHES: dict[str, Callable[[Run], Iterator[Point]]] = {
    "versus_llamacpp": versus,
    "kernels": kernels,
    "disk": disk,
    "cache": cache,
}


def commits(found: list[Results]) -> list[str]:
    """A label a commit, in order; a tree that differed from its commit has a star."""
    return [
        f"{one['commit_date'][:10]} {one['commit'][:7]}{'*' if one['changed'] else ''}"
        for one in found
    ]


def panels(found: list[Results]) -> list[Panel]:
    """Every panel of some results of one machine, which are in the order of their commits."""
    drawn: dict[str, Panel] = {}
    for place, one in enumerate(found):
        values: dict[tuple[str, str], list[float]] = {}
        for run in one["runs"]:
            for title, line, value in points(run):
                values.setdefault((title, line), []).append(value)
        for (title, line), several in values.items():
            panel = drawn.setdefault(title, Panel(title))
            panel.lines.setdefault(line, []).append((place, statistics.median(several)))
    return list(drawn.values())


def points(run: Run) -> Iterator[Point]:
    """What one run adds; nothing where no panel is drawn of its bench."""
    if run["bench"] in BENCHES:
        yield from BENCHES[run["bench"]](run)
