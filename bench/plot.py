"""Draws the kept results of a machine over commits as one PNG.

    .venv/bin/python bench/plot.py [--machine NAME] --out results.png

A panel a figure: decode and prompt speed of each case beside llama.cpp's, shares of the limit,
GB/s of the products and of the disk, hit rates. Needs matplotlib (the extra ``bench``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import results
from command import run
from series import Panel, commits, panels

COLUMNS = 2
PANEL_INCHES = (7.0, 3.4)


def draw(shown: list[Panel], labels: list[str], title: str, path: Path) -> None:
    """Write the PNG."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("error: drawing needs matplotlib: .venv/bin/pip install -e '.[bench]'")
    rows = -(-len(shown) // COLUMNS)
    size = (PANEL_INCHES[0] * COLUMNS, PANEL_INCHES[1] * rows)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(shown):
        axes = figure.add_subplot(rows, COLUMNS, number + 1)
        for name, line in panel.lines.items():
            axes.plot(*zip(*line, strict=True), marker="o", markersize=4, label=name)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=7)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6, loc="best")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Choose the machine and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machine", help="where results of several are kept")
    parser.add_argument("--results", type=Path, default=results.FOLDER, metavar="DIRECTORY")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    given = parser.parse_args()
    found = results.load_all(given.results)
    names = sorted({one["machine"]["name"] for one in found})
    if given.machine is None and len(names) > 1:
        parser.error(f"give --machine: there are results of {', '.join(names)}")
    name = given.machine or (names[0] if names else None)
    chosen = [one for one in found if one["machine"]["name"] == name]
    if not chosen or name is None:
        parser.error(f"no results to draw: run a bench with --save; there are: {names or 'none'}")
    draw(panels(chosen), commits(chosen), name, given.out)


if __name__ == "__main__":
    run(main)
