"""Launches of the feed-forward part of many rows: experts in slots of an arena, and the shared one
(source/panel_experts.cu).

Owns which rows meet which expert, and in what portions. Experts are added to a row in ascending
order, whatever the portions, so that batches may come one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from flashmoe.kernels.cuda.descriptors import Placed, Resident, described_experts
from flashmoe.kernels.cuda.device import Device, DeviceArray, check
from flashmoe.kernels.cuda.panels import (
    SHARED_BYTES,
    TILE_ROWS,
    Products,
    Rows,
    group_of,
    output_blocks,
)
from flashmoe.kernels.cuda.rows import add
from flashmoe.quant import Array

PLACES = 16384
"""Rows of experts that pass together, unless one expert alone has more."""

_i32 = np.int32


class Meetings:
    """Which rows of a chunk meet which expert, found once for a layer: ids (T, k) of the host.

    *Places* are in ascending order of the expert, and of the row for each. ``tokens``, int32
    (places), has the row of each; ``uses``, int32 (T, k, 2), each row's places in ascending order,
    each with the index of its weight.
    """

    def __init__(self, device: Device, ids: Array) -> None:
        self.shape: tuple[int, int] = ids.shape
        flat = ids.reshape(-1)
        order = _order(flat)
        places = np.empty(flat.size, _i32)
        places[order] = np.arange(flat.size, dtype=_i32)
        uses = np.empty((*ids.shape, 2), _i32)
        uses[..., 0] = places = np.sort(places.reshape(ids.shape), axis=1)
        uses[..., 1] = order[places]
        tokens = order // ids.shape[1]
        both = device.upload(np.concatenate([uses.reshape(-1), tokens], dtype=_i32))
        self.uses, self.tokens = both[: uses.size].reshape(uses.shape), both[uses.size :]
        counts = np.bincount(flat)
        tiles = -(-counts // TILE_ROWS)
        begins = _begins(counts)
        self._tile_begins: list[int] = _begins(tiles).tolist()
        self.begins: list[int] = begins.tolist()
        """The first place of each expert, and one more behind the last expert that is met."""
        self._owners = owners = np.repeat(np.arange(len(counts)), tiles)
        within = np.arange(len(owners)) - np.repeat(self._tile_begins[:-1], tiles)
        self._tiles = np.empty((len(owners), 3), _i32)  # of the expert, first place, count
        self._tiles[:, 1] = begins[owners] + within * TILE_ROWS
        self._tiles[:, 2] = np.minimum(begins[owners + 1] - self._tiles[:, 1], TILE_ROWS)

    def tiles(self, experts: Sequence[tuple[int, int]]) -> Array:
        """Those of experts that follow one another, each with its slot, int32 (n, 3): the slot, the
        first place, counted from the first of all of them, and how many."""
        first, last = experts[0][0], experts[-1][0]
        some = slice(self._tile_begins[first], self._tile_begins[last + 1])
        slots = np.full(last + 1 - first, -1, _i32)
        slots[[number - first for number, _ in experts]] = [slot for _, slot in experts]
        made: Array = self._tiles[some].copy()
        made[:, 0] = slots[self._owners[some] - first]
        made[:, 1] -= self.begins[first]
        return made


def portions(
    begins: Sequence[int], held: Sequence[tuple[int, int]], most: int
) -> Iterator[list[tuple[int, int]]]:
    """Those of ``held`` (expert, slot) that are met, in portions whose places follow one another:
    at most ``most``, or those of one expert."""
    known = len(begins) - 1
    met = [(n, slot) for n, slot in held if n < known and begins[n] < begins[n + 1]]
    if met:  # nearly always all of them are one portion
        places = begins[met[-1][0] + 1] - begins[met[0][0]]
        if places <= most and places == sum([begins[n + 1] - begins[n] for n, _ in met]):
            yield met
            return
    some: list[tuple[int, int]] = []
    for number, slot in met:
        if some:
            follows = begins[some[-1][0] + 1] == begins[number]
            if not follows or begins[number + 1] - begins[some[0][0]] > most:
                yield some
                some = []
        some.append((number, slot))
    if some:
        yield some


def _order(numbers: Array) -> Array:
    """The stable order of numbers; those that fit 16 bits sort ten times as fast."""
    short = numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))), copy=False)
    return np.argsort(short, kind="stable")


def _begins(counts: Array) -> Array:
    """Where each of so many begins, and where the last ends."""
    begins = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=begins[1:])
    return begins


class Experts:
    """The routed experts of a layer; ``record`` describes gate, up and down of every one."""

    def __init__(
        self,
        device: Device,
        arena: int,
        slot_bytes: int,
        record: Sequence[Placed],
        most_places: int = PLACES,
    ) -> None:
        self._device, self._most = device, most_places
        self.width, self.hidden = record[0][1]
        self._groups = [group_of(form) for form, _, _ in record]
        self._table = described_experts(arena, slot_bytes, record)[()]

    def __call__(
        self,
        x: Rows,
        meetings: Meetings,
        weights: DeviceArray,
        held: Sequence[tuple[int, int]],
        y: DeviceArray,
    ) -> None:
        """``y[t] += weight * expert(x[t])`` for the experts in ``held``, pairs of number and slot
        in ascending order.

        x and y are (T, hidden), weights (T, k) float32, as the ids of ``meetings``. Ids that are
        not in ``held`` are left out.
        """
        count = meetings.shape[0]
        check("activations", y, (x.count, self.hidden))
        if x.inputs != self.hidden or count != x.count:
            raise ValueError(f"{count} ids for activations ({x.count}, {x.inputs}) do not fit")
        check("the routing weights", weights, meetings.shape)
        for portion in portions(meetings.begins, held, self._most):
            self._add(x, meetings, portion, weights, y)

    def _add(
        self,
        x: Rows,
        meetings: Meetings,
        experts: Sequence[tuple[int, int]],
        weights: DeviceArray,
        y: DeviceArray,
    ) -> None:
        device = self._device
        first, end = meetings.begins[experts[0][0]], meetings.begins[experts[-1][0] + 1]
        places, tokens = end - first, meetings.tokens[first:end]
        tiles = device.upload(meetings.tiles(experts))
        gate, up = (device.empty((places, self.width), np.float32) for _ in range(2))
        if self._groups[0] == self._groups[1]:
            self._multiply(0, x, tiles, tokens, gate, up)
        else:
            self._multiply(0, x, tiles, tokens, gate)
            self._multiply(1, x, tiles, tokens, up)
        out = device.empty((places, self.hidden), np.float32)
        self._multiply(2, Rows(device, gate, up), tiles, None, out)
        grid = (x.count, -(-self.hidden // 1024), 1)
        some = meetings.uses, _i32(meetings.shape[1]), _i32(first), _i32(places)
        arguments = *some, weights, out, _i32(self.hidden), y
        device.launch("panel_experts", "combine", grid, 256, *arguments)

    def _multiply(
        self,
        of: int,
        x: Rows,
        tiles: DeviceArray,
        chosen: DeviceArray | None,
        *y: DeviceArray,
    ) -> None:
        """Matrix ``of`` of gate, up and down, or two from there on."""
        group = self._groups[of]
        blocks = output_blocks(group, self.hidden if of == 2 else self.width)
        self._device.launch(
            "panel_experts",
            f"experts_{group or 'plain'}",
            (len(tiles), blocks * len(y), 1),
            256,
            self._table,
            tiles,
            _i32(of),
            x.form(group),
            _i32(x.count),
            chosen,
            y[0],
            y[1] if len(y) == 2 else None,
            shared_bytes=SHARED_BYTES.get(group, 0),
        )


class SharedExpert:
    """The expert that every row meets: gate, up and down."""

    def __init__(self, device: Device, gate: Resident, up: Resident, down: Resident) -> None:
        self._device = device
        self._up, self._down = Products(device, (gate, up)), Products(device, (down,))

    def __call__(self, x: Rows, logits: DeviceArray | None, y: DeviceArray) -> None:
        """``y += sigmoid(logits) * down(silu(gate(x)) * up(x))``: x and y (T, hidden), logits
        (T, 1) or none, which leaves the factor out."""
        device = self._device
        gate, up = (device.empty((x.count, n), np.float32) for n in self._up.outputs)
        self._up(x, (gate, up))
        if logits is None:
            self._down(Rows(device, gate, up), (y,), y)
            return
        out = device.empty((x.count, *self._down.outputs), np.float32)
        self._down(Rows(device, gate, up), (out,))
        add(device, y, out, logits)
