"""A dense SwiGLU feed-forward network as slices that are always active.

``down(silu(gate x) * (up x))`` is a sum over the intermediate units, so N groups of units, each
with its rows of gate and up and its inputs of down, are N experts of weight 1.
"""

from __future__ import annotations

from flashmoe.errors import ConversionError
from flashmoe.quant import Affine
from flashmoe.shape import ExpertsShape
from flashmoe.store.families.draft import Draft
from flashmoe.store.recipe import LayerSource, ProjectionSource

DEFAULT_SLICES = 8


def slice_shape(intermediate: int, slices: int | None) -> ExpertsShape:
    """The experts that the slices are; checked for whole groups by :func:`take_slices`.

    Raises:
        ConversionError: the units do not divide into so many slices.
    """
    count = DEFAULT_SLICES if slices is None else slices
    if count < 1 or intermediate < 1 or intermediate % count:
        raise _refuse(intermediate, count, 1)
    return ExpertsShape(
        count=count,
        top_k=count,
        intermediate=intermediate // count,
        router="all",
        renormalize=False,
        shared_intermediate=0,
    )


def take_slices(
    draft: Draft, names: tuple[str, str, str], hidden: int, experts: ExpertsShape, group: int
) -> None:
    """Add a layer of slices of the published gate, up and down.

    ``group`` is the group size that plain weights will be quantised with, 1 for none.

    Raises:
        ConversionError: a border of a slice would cut a quantisation group of down.
    """
    width, count = experts.intermediate, experts.count
    whole = width * count
    gate, up, down = names
    gate_form, up_form = (draft.take(name, (whole, hidden)) for name in (gate, up))
    down_form = draft.take(down, (hidden, whole))
    unit = down_form.group if isinstance(down_form, Affine) else group
    if width % unit:
        raise _refuse(whole, count, unit)
    draft.layers.append(
        LayerSource(
            ProjectionSource(gate, gate_form, width, 0, width),
            ProjectionSource(up, up_form, width, 0, width),
            ProjectionSource(down, down_form, hidden, slice_inputs=width),
        )
    )


def _refuse(intermediate: int, count: int, unit: int) -> ConversionError:
    units = max(intermediate, 0) // unit if intermediate % unit == 0 else 0
    working = [n for n in range(1, min(units, 4096) + 1) if units % n == 0]
    mend = f"use --slices {', '.join(map(str, working[:24]))}" if working else "use another --group"
    return ConversionError(
        f"a feed-forward network of {intermediate} units does not divide into {count} slices of "
        f"whole groups of {unit}; {mend}"
    )
