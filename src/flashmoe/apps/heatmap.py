"""The heat map of a routing log: how often each layer chose each expert, as a PNG.

Owns the picture. Needs matplotlib, the extra ``plot``.
"""

from __future__ import annotations

from pathlib import Path

from flashmoe.errors import InputError
from flashmoe.quant import Array


def draw(counts: Array, title: str, path: Path) -> None:
    """Draw activations (layers, experts) to a PNG.

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise InputError(
            "a heat map needs matplotlib: pip install matplotlib, or leave out --plot"
        ) from error
    layers, experts = counts.shape
    width = min(max(experts * 0.12, 6.0), 24.0)
    height = min(max(layers * 0.18, 2.5), 16.0)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(counts, aspect="auto", interpolation="nearest", cmap="viridis")
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    axes.set_title(title)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, label="activations")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise InputError(f"the heat map {path} cannot be written: {error.strerror}") from error
