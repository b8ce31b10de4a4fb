"""Launches of the feed-forward part of many rows: experts in slots of an arena, and the shared one
(source/panel_experts.cu).

Owns which rows meet which expert, and in what portions. Experts are added to a row in the order in
which they are given, whatever the portions, so that batches may come one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flashmoe.kernels.cuda.decode import Placed
from flashmoe.kernels.cuda.descriptors import EXPERTS, Resident, described
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

PLACES = 32768
"""Rows of experts that pass together, unless one expert alone has more."""

_i32 = np.int32


@dataclass(frozen=True, eq=False)
class Portion:
    """Some of the experts, all int32: ``tiles`` (n, 3) slot, first place and count; ``tokens``
    (places); ``begins`` (T + 1) into ``uses`` (places, 2), a place and an index of the weights."""

    tiles: Array
    tokens: Array
    begins: Array
    uses: Array


def portions(ids: Array, held: Sequence[tuple[int, int]], most: int) -> Iterator[Portion]:
    """The work of ``held`` (expert, slot) for ids (T, k), in portions of at most ``most`` places or
    of one expert."""
    flat = ids.reshape(-1)
    order, begins = _order(flat), _begins(flat, max((number for number, _ in held), default=0) + 1)
    some: list[tuple[int, Array]] = []
    places = 0
    for number, slot in held:
        first, end = begins[number], begins[number + 1]
        if some and places + end - first > most:
            yield _portion(some, *ids.shape)
            some, places = [], 0
        if end > first:
            some.append((slot, order[first:end]))
            places += end - first
    if some:
        yield _portion(some, *ids.shape)


def _portion(some: list[tuple[int, Array]], count: int, top_k: int) -> Portion:
    """Of slots and the indices of ids (T, k) that want what lies there."""
    slots = np.array([slot for slot, _ in some])
    lengths = np.array([len(chosen) for _, chosen in some])
    counts = -(-lengths // TILE_ROWS)
    owner = np.repeat(np.arange(len(some)), counts)
    within = (np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]) * TILE_ROWS
    first = (np.cumsum(lengths) - lengths)[owner] + within
    sizes = np.minimum(TILE_ROWS, lengths[owner] - within)
    tiles = np.stack([slots[owner], first, sizes], axis=1)
    weights = np.concatenate([chosen for _, chosen in some])
    tokens = weights // top_k
    by_token, begins = _order(tokens), _begins(tokens, count)
    uses = np.stack([by_token, weights[by_token]], axis=1)
    return Portion(*(np.asarray(a, _i32) for a in (tiles, tokens, begins, uses)))


def _order(numbers: Array) -> Array:
    """The stable order of numbers; those that fit 16 bits sort ten times as fast."""
    short = numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))), copy=False)
    return np.argsort(short, kind="stable")


def _begins(numbers: Array, count: int) -> Array:
    """Where each of the numbers below ``count`` begins in their order, and where the last ends."""
    return np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=count))[:count]])


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
        made = np.zeros((), EXPERTS)
        made["arena"], made["slot_bytes"] = arena, slot_bytes
        for name, placed in zip(("gate", "up", "down"), record, strict=True):
            made[name] = described(*placed)
        self._table = made[()]

    def __call__(
        self,
        x: Rows,
        ids: Array,
        weights: DeviceArray,
        held: Sequence[tuple[int, int]],
        y: DeviceArray,
    ) -> None:
        """``y[t] += weight * expert(x[t])`` for the experts in ``held``, pairs of number and slot,
        in their order.

        x and y are (T, hidden), ids (T, k) of the host, weights (T, k) float32. Ids that are not
        in ``held`` are left out.
        """
        check("activations", y, (x.count, self.hidden))
        if x.inputs != self.hidden or len(ids) != x.count:
            raise ValueError(f"{len(ids)} ids for activations ({x.count}, {x.inputs}) do not fit")
        check("the routing weights", weights, ids.shape)
        for portion in portions(ids, held, self._most):
            self._add(x, portion, weights, y)

    def _add(self, x: Rows, portion: Portion, weights: DeviceArray, y: DeviceArray) -> None:
        device, places = self._device, len(portion.tokens)
        tiles, tokens, begins, uses = self._uploaded(portion)
        gate, up = (device.empty((places, self.width), np.float32) for _ in range(2))
        if self._groups[0] == self._groups[1]:
            self._multiply(0, x, tiles, tokens, gate, up)
        else:
            self._multiply(0, x, tiles, tokens, gate)
            self._multiply(1, x, tiles, tokens, up)
        out = device.empty((places, self.hidden), np.float32)
        self._multiply(2, Rows(device, gate, up), tiles, None, out)
        grid = (x.count, -(-self.hidden // 1024), 1)
        arguments = begins, uses, weights, out, _i32(self.hidden), y
        device.launch("panel_experts", "combine", grid, 256, *arguments)

    def _uploaded(self, portion: Portion) -> list[DeviceArray]:
        """Its arrays, in one copy."""
        arrays = portion.tiles, portion.tokens, portion.begins, portion.uses
        whole = self._device.upload(np.concatenate([array.reshape(-1) for array in arrays]))
        parts, start = [], 0
        for array in arrays:
            parts.append(whole[start : start + array.size].reshape(array.shape))
            start += array.size
        return parts

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
