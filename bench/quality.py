"""What bits and experts a token cost: perplexity, divergence and tool calls, by `flashmoe eval`.

    .venv/bin/python bench/quality.py models/austen-moe WORK --text austen.txt --text bible.txt \\
        --tools models/austen-moe/recipe/heldout_tool_requests.json

Converts the checkpoint into WORK once for each width, evaluates every variant, and prints a
Markdown table a file; a figure that is there already (WORK/*.json) is not measured again. Every
divergence is from the store that keeps the published type.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from command import run, whole

VARIANTS = {
    "16, 16": ("16", "16", None),
    "8, 8": ("8", "8", None),
    "4, 4": ("4", "4", None),
    "3, 4": ("3", "4", None),
    "2, 4": ("2", "4", None),
    "2, 2": ("2", "2", None),
    "4, 4, half of the experts a token": ("4", "4", 2),
    "4, 4, a quarter": ("4", "4", 4),
}
"""Bits of experts and trunk, and what the number of experts a token is divided by."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--text", type=Path, action="append", default=[])
    parser.add_argument("--windows", type=whole(), default=24)
    parser.add_argument("--tools", type=Path)
    parser.add_argument("--max-tokens", type=whole(), default=80)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    exact = store(given.checkpoint, given.work, "16", "16")
    for text in given.text:
        print(f"\n| {text.name} | perplexity | ± | KL, mean | 99 % | same likeliest |")
        print("|---|---|---|---|---|---|")
        flags = ("--text", text, "--windows", given.windows, "--against", exact)
        for name, found in measured(given, text.stem, flags):
            of, against = found["text"], found["against"]
            print(
                f"| {name} | {of['perplexity']:.2f} | {of['perplexity_se']:.2f} "
                f"| {against['kl_mean']:.4f} | {against['kl_p99']:.3f} "
                f"| {against['same_top_1']:.1%} |",
                flush=True,
            )
    if given.tools is not None:
        print("\n| tool requests | well-formed | valid | right | constrained: valid | right |")
        print("|---|---|---|---|---|---|")
        flags = ("--tools", given.tools, "--max-tokens", given.max_tokens)
        for name, found in measured(given, given.tools.stem, flags):
            free, bound = found["tools"]["unconstrained"], found["tools"]["constrained"]
            counts = [free[key] for key in ("well_formed", "valid", "right")]
            counts += [bound["valid"], bound["right"]]
            total = found["tools"]["cases"]
            print(f"| {name} | {' | '.join(f'{count} of {total}' for count in counts)} |")


def measured(
    given: argparse.Namespace, what: str, flags: tuple[object, ...]
) -> list[tuple[str, dict[str, Any]]]:
    """The JSON object of every variant."""
    found = []
    for name, (bits, trunk_bits, divisor) in VARIANTS.items():
        path = store(given.checkpoint, given.work, bits, trunk_bits)
        kept = given.work / f"{what}-{bits}-{trunk_bits}-{divisor or 1}.json"
        if not kept.exists():
            fewer = ("--experts-per-token", top_k(path) // divisor) if divisor else ()
            kept.write_text(flashmoe("eval", path, *flags, *fewer, "--json"))
        found.append((name, json.loads(kept.read_text())))
    return found


def top_k(path: Path) -> int:
    """The store's own number of experts a token."""
    from flashmoe.store.reader import Store

    return Store.open(path).shape.experts.top_k


def store(checkpoint: Path, work: Path, bits: str, trunk_bits: str) -> Path:
    """The checkpoint as a store of these widths, converted if it is not there."""
    path = work / f"store-{bits}-{trunk_bits}"
    if not (path / "manifest.json").exists():
        trunk = () if bits == "16" else ("--trunk-bits", trunk_bits)
        flashmoe("convert", checkpoint, path, "--bits", bits, *trunk)
    return path


def flashmoe(*arguments: object) -> str:
    """What a command prints; standard error is passed on."""
    line = [sys.executable, "-c", "from flashmoe.apps import main; raise SystemExit(main())"]
    done = subprocess.run(
        [*line, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    run(main)
