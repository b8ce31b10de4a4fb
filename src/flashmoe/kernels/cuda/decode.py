"""One token's launches: embedding, norms and products, router and what it brings (source/decode.cu,
experts.cu).

Owns the checks and the launch geometry, and knows nothing of layers. Vectors are float32 arrays
(n,) of the device; a *fixed* vector has the form of source/fixed.cuh beside the floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels.cuda.descriptors import Resident
from flashmoe.kernels.cuda.device import Device, DeviceArray, check
from flashmoe.kernels.cuda.rings import Rings

MOST_EXPERTS, MOST_CHOSEN = 1024, 31
"""Of a layer, and of a token with the shared one beside: a warp's registers and lanes."""

BRINGING_BLOCKS = 32
"""Of 256 threads with eight chunks of 16 bytes under way each: several times what a bus holds."""
MOST_INPUTS = 8192
"""Of a norm: a block holds 8 bytes of each in shared memory, of which GeForce cards have 99 KiB,
and its weights beside them."""
MOST_EARLY = 4
"""kMostEarly of source/experts.cu."""
INPUTS = 6
"""Numbers of a step: token, position, number, slots taken, offered, and offered when a layer's
experts were looked up last."""

_i32, _i64, _f32 = np.int32, np.int64, np.float32


def fixed_bytes(inputs: int) -> int:
    """Bytes of a vector in fixed point."""
    return 3 * inputs + inputs // 4


@dataclass(frozen=True, eq=False)
class Vector:
    """Activations of one token, both ways."""

    floats: DeviceArray
    fixed: DeviceArray

    def __len__(self) -> int:
        return len(self.floats)


def vector(device: Device, inputs: int) -> Vector:
    """Room for one."""
    return Vector(
        device.empty((inputs,), np.float32), device.empty((fixed_bytes(inputs),), np.uint8)
    )


class Projection:
    """Products of the same vector with several matrices, one after the other in the result."""

    def __init__(self, device: Device, matrices: Sequence[Resident]) -> None:
        self._rings = Rings(device, matrices, 4)
        self.inputs, self.outputs = self._rings.inputs, self._rings.outputs

    def __call__(self, x: Vector, y: DeviceArray, residual: DeviceArray | None = None) -> None:
        """``y = matrices @ x``, plus ``residual`` where there is one, which may be y itself."""
        check("activations", x.floats, (self.inputs,))
        check("results", y, (self.outputs,))
        if residual is not None:
            check("the residual", residual, (self.outputs,))
        self._rings.launch("project", x.floats, x.fixed, residual, y)


class NormedProjection:
    """The same of a vector's norm, ``x / sqrt(mean(x^2) + eps) * weight``, in the same launch."""

    def __init__(
        self, device: Device, matrices: Sequence[Resident], weight: DeviceArray, eps: float
    ) -> None:
        self._rings = Rings(device, matrices, 8)
        self.inputs, self.outputs = self._rings.inputs, self._rings.outputs
        check("a norm's weights", weight, (self.inputs,))
        self._weight, self._eps = weight, _f32(eps)

    def __call__(self, x: DeviceArray, y: DeviceArray, normed: Vector | None = None) -> None:
        """``y = matrices @ norm(x)``; the norm itself to ``normed``, where that is given."""
        check("the residual stream", x, (self.inputs,))
        check("results", y, (self.outputs,))
        if normed is not None:
            check("the norm", normed.floats, (self.inputs,))
        written = (normed.floats, normed.fixed) if normed is not None else (None, None)
        self._rings.launch("project_normed", x, self._weight, self._eps, *written, y)


class Embedding:
    """Rows of the embedding by id."""

    def __init__(self, device: Device, weights: Resident) -> None:
        self._device, self._weights = device, weights
        self._table = weights.described()[()]

    def __call__(self, given: DeviceArray, inputs: DeviceArray, x: DeviceArray) -> None:
        """``x`` (hidden) becomes the row of the token.

        ``given`` (INPUTS,) int32, which may be the host's, has token, position and number of the
        step, and how many slots were taken and offered until then (``mailbox``); they are taken
        over into ``inputs`` (INPUTS,).
        """
        hidden = self._weights.shape[1]
        check("the residual stream", x, (hidden,))
        grid = (-(-hidden // 256), 1, 1)
        self._device.launch("decode", "lookup", grid, 256, self._table, given, inputs, x)


class Norm:
    """``y = x / sqrt(mean(x^2) + eps) * weight``, as floats and fixed."""

    def __init__(self, device: Device, weight: DeviceArray, eps: float) -> None:
        self._device, self._weight, self._eps = device, weight, _f32(eps)

    def __call__(self, x: DeviceArray, y: Vector) -> None:
        columns = len(self._weight)
        check("the residual stream", x, (columns,))
        check("results", y.floats, (columns,))
        threads = min(1024, columns)
        arguments = x, self._weight, self._eps, _i32(columns), y.floats, y.fixed
        self._device.launch("decode", "rms_norm", (1, 1, 1), threads, *arguments)


@dataclass(frozen=True, eq=False)
class Choice:
    """What the router said: ids, weights, slots and sources (top_k,) of the device.

    A *source* is the place in RAM of a record that is to be brought into its slot (:func:`bring`),
    or one of ``mailbox``'s words in its place.
    """

    ids: DeviceArray
    weights: DeviceArray
    slots: DeviceArray
    sources: DeviceArray


def choice(device: Device, ids: DeviceArray) -> Choice:
    """Room for one, beside that for its ``ids`` (top_k,) int32."""
    slots, sources = (device.empty(ids.shape, np.int32) for _ in range(2))
    return Choice(ids, device.empty(ids.shape, np.float32), slots, sources)


@dataclass(frozen=True, eq=False)
class Early:
    """Experts that were given slots before the router chose: ids, slots and sources, each
    (MOST_EARLY,) int32 of ``whole`` (3 * MOST_EARLY,)."""

    whole: DeviceArray

    @property
    def chosen(self) -> Choice:
        """As :func:`bring` takes them."""
        ids, slots, sources = (
            self.whole[start : start + MOST_EARLY] for start in range(0, 3 * MOST_EARLY, MOST_EARLY)
        )
        return Choice(ids, ids, slots, sources)


def early(device: Device) -> Early:
    """Room for them, with nothing in it."""
    return Early(device.upload(np.full(3 * MOST_EARLY, -1, np.int32)))


@dataclass(frozen=True, eq=False)
class Post:
    """What device and host have to say to each other of one layer's choice (``mailbox``)."""

    letter: DeviceArray
    offers: DeviceArray
    inputs: DeviceArray
    """The step's own numbers."""
    records: DeviceArray | None = None
    """Each expert's place in RAM (experts,) int32, -1 for none; None where that is for the host to
    say."""
    early: Early | None = None
    """What has been anticipated of this layer, if anything is."""


def route(
    device: Device,
    logits: DeviceArray | None,
    renormalize: bool,
    table: DeviceArray,
    into: Choice,
    post: Post | None = None,
) -> None:
    """The ``top_k`` best of logits (experts,), as ``reference.route``; without logits all.

    ``table`` (experts,) int32 says in which slot each lies, -1 for none. By ``post`` the host
    hears of the choice, and those in no slot take one that is on offer; without, each has one.
    """
    top_k, count = len(into.ids), len(table)
    if count > MOST_EXPERTS or not 0 < top_k <= min(MOST_CHOSEN, count):
        raise InputError(
            f"{top_k} of {count} experts: the GPU's kernels choose at most {MOST_CHOSEN} of "
            f"{MOST_EXPERTS}; run this model with --kernels cpu"
        )
    numbers = _i32(count), _i32(top_k), _i32(renormalize)
    told: tuple[DeviceArray | None, ...] = (None,) * 5
    if post is not None:
        guessed = None if post.early is None else post.early.whole
        told = post.records, post.offers, post.inputs, post.letter, guessed
    made = into.ids, into.weights, into.slots, into.sources
    device.launch("experts", "route", (1, 1, 1), 32, logits, *numbers, table, *told, *made)


def anticipate(
    device: Device,
    logits: DeviceArray,
    reach: int,
    most: int,
    spare: int,
    table: DeviceArray,
    post: Post,
) -> None:
    """Give slots on offer to up to ``most`` experts of a layer that are in none, of the ``reach``
    likeliest by logits (experts,) that are not final, if ``spare`` are left; into ``post.early``,
    from where :func:`bring` brings them. ``post`` is that layer's."""
    if not 0 < most <= MOST_EARLY or not 0 < reach <= min(MOST_CHOSEN, len(table)):
        raise ValueError(f"{most} experts of {reach} are not to be anticipated")
    if post.early is None or post.records is None:
        raise ValueError("what is anticipated must be found in RAM, and kept")
    numbers = (_i32(n) for n in (len(table), reach, most, spare))
    told = post.records, post.offers, post.inputs, post.letter, post.early.whole
    device.launch("experts", "anticipate", (1, 1, 1), 32, logits, *numbers, table, *told)


@dataclass(frozen=True, eq=False)
class Places:
    """Records that lie ``stride_bytes`` apart from an address on: slots, or RAM as the device sees
    it."""

    address: int
    stride_bytes: int


def bring(
    device: Device, ram: Places, slots: Places, record_bytes: int, chosen: Choice, post: Post
) -> None:
    """Copy the records of those chosen that are not in their slots there, from where ``sources``
    or, a letter later, the host says."""
    if record_bytes % 16:
        raise ValueError(f"records of {record_bytes} bytes are not whole chunks of 16")
    places = _i64(ram.address), _i64(ram.stride_bytes), _i64(slots.address)
    device.launch(
        "experts",
        "bring",
        (BRINGING_BLOCKS, 1, 1),
        256,
        *places,
        _i64(slots.stride_bytes),
        _i32(record_bytes // 16),
        chosen.slots,
        chosen.sources,
        _i32(len(chosen.slots)),
        post.inputs,
        post.letter,
    )
