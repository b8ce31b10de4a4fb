"""What every tensor of a store is made of: published tensor, rows, order of rows, inputs.

Owns the recipe that ``families`` writes and ``conversion`` follows. Knows neither configs nor
files, and holds no weights.

Invariant: a recipe mentions only tensors that the checkpoint has, in the shapes that it has, so
following it cannot fail for want of a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from flashmoe.quant import Affine, Array, Format
from flashmoe.shape import ModelShape

Role: TypeAlias = Literal["matrix", "router", "vector"]


@dataclass(frozen=True)
class TrunkSource:
    """One resident tensor.

    ``target`` is our name and ``shape`` ours; ``source`` is the published name and ``form`` how
    it is published. ``role`` says what may be done to it: a "matrix" is quantised to the trunk's
    bits, a "router" to 8 bits or more, a "vector" is copied as published. ``order`` gives the
    published row of each of our rows; None keeps their order.
    """

    target: str
    source: str
    form: Format
    shape: tuple[int, ...]
    role: Role
    order: Array | None = None


@dataclass(frozen=True)
class ProjectionSource:
    """One projection of every expert of a layer.

    Expert e is ``rows`` rows from row ``first + e * stride`` of ``name`` (of the tensor of its
    own number, where ``name`` has a ``{}``). With ``slice_inputs`` it is inputs
    ``e * slice_inputs`` to ``(e + 1) * slice_inputs`` of those rows only.
    """

    name: str
    form: Format
    rows: int
    first: int = 0
    stride: int = 0
    slice_inputs: int | None = None

    def tensor(self, expert: int) -> str:
        """The published tensor that holds this expert."""
        return self.name.format(expert)

    def start(self, expert: int) -> int:
        """The published row where this expert begins."""
        return self.first + expert * self.stride

    def inputs(self, expert: int) -> tuple[int, int] | None:
        """The inputs that belong to this expert; None: all."""
        if self.slice_inputs is None:
            return None
        return expert * self.slice_inputs, (expert + 1) * self.slice_inputs


@dataclass(frozen=True)
class LayerSource:
    """The routed experts, or slices, of one layer."""

    gate: ProjectionSource
    up: ProjectionSource
    down: ProjectionSource

    def projections(self) -> tuple[ProjectionSource, ProjectionSource, ProjectionSource]:
        """Gate, up and down, in the order of a record."""
        return self.gate, self.up, self.down


@dataclass(frozen=True)
class Recipe:
    """A whole store. ``skipped`` maps published tensors that are left out to the reason."""

    shape: ModelShape
    trunk: tuple[TrunkSource, ...]
    layers: tuple[LayerSource, ...]
    skipped: Mapping[str, str]

    @property
    def quantized(self) -> bool:
        """Whether any weight is published quantised: then all of them are repacked as they are."""
        forms = [tensor.form for tensor in self.trunk]
        forms += [projection.form for layer in self.layers for projection in layer.projections()]
        return any(isinstance(form, Affine) for form in forms)
