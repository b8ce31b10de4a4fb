"""One token's attention between its projections, in two launches (source/attention*.cu).

Owns the checks, the geometry, and the arrays that hold keys and values in the forms of
:mod:`flashmoe.kernels.kv`. How many tokens came before is read from the device's memory: the
launches of every token are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels.cuda.decode import Vector
from flashmoe.kernels.cuda.descriptors import CHUNK, uploaded
from flashmoe.kernels.cuda.device import Device, DeviceArray, check
from flashmoe.kernels.mixers import AttentionWeights
from flashmoe.kernels.reference import frequencies

WIDTHS, MOST_QUERIES = (64, 128, 256), 16
"""Heads' dimensions that there are kernels for, and query heads that share a kv head."""
NARROW = 8
"""Query heads up to which both parts of them fit one product of the tensor cores."""
BLOCKS = 132
"""In which the keys are split, over all kv heads: one a multiprocessor of an H100. A constant, so
that the sums are the same on every GPU."""
ROW_BYTES = 4 * (512 + 2 * 72 + 3 * 8)
"""Shared memory a query head (source/attention_share.cuh)."""

FORMS = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "int8": np.int8}
"""Elements of each form; bfloat16 as its bits, since not every library knows it."""

ATTENTION = np.dtype(
    [
        *((name, "<u8") for name in ("frequencies", "q_norm", "k_norm")),
        *((name, "<i4") for name in ("heads", "kv_heads", "rope_dims", "gated")),
        ("eps", "<f4"),
        ("", "<i4"),
    ]
)

HELD = np.dtype(
    [
        *((name, "<u8") for name in ("keys", "values", "key_scales", "value_scales")),
        ("context", "<i4"),
        ("", "<i4"),
    ]
)


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys and values of one layer, (kv_heads, context, head_dim) each.

    ``arrays`` are named as those of :class:`flashmoe.kernels.kv.KeyValues`; of ``int8`` there are
    scales too, (kv_heads, context).
    """

    kind: str
    extent: tuple[int, int, int]
    arrays: dict[str, DeviceArray]
    table: DeviceArray = field(repr=False)


def key_values(device: Device, kind: str, extent: tuple[int, int, int]) -> KeyValues:
    """Room for ``extent`` in the form ``kind``.

    Raises:
        InputError: there is no such form.
        BudgetError: there is no memory for it.
    """
    if kind not in FORMS:
        raise InputError(f"keys and values held as {kind!r}: choose one of {', '.join(FORMS)}")
    names = ("keys", "values")
    arrays = {name: device.empty(extent, FORMS[kind]) for name in names}
    if kind == "int8":
        arrays |= {f"{name[:-1]}_scales": device.empty(extent[:2], np.float32) for name in names}
    made = np.zeros((), HELD)
    for name, array in arrays.items():
        made[name] = device.address(array)
    made["context"] = extent[1]
    return KeyValues(kind, extent, arrays, uploaded(device, made))


class Attention:
    """The attention of a layer.

    Raises:
        InputError: its heads are of a width or number that there are no kernels for.
    """

    def __init__(self, device: Device, weights: AttentionWeights) -> None:
        self.shape = shape = weights.shape
        group = shape.heads // shape.kv_heads
        if shape.head_dim not in WIDTHS:
            raise InputError(
                f"attention of head_dim {shape.head_dim}: the GPU's kernels know "
                f"{', '.join(map(str, WIDTHS))}; run this model with --kernels cpu"
            )
        if group > MOST_QUERIES:
            raise InputError(
                f"{group} query heads a kv head: the GPU's kernels take at most {MOST_QUERIES}; "
                "run this model with --kernels cpu"
            )
        self._device = device
        self._splits = max(1, BLOCKS // shape.kv_heads)
        wide = group > NARROW
        self._kernel = f"attend_{shape.head_dim}{'_wide' if wide else ''}"
        self._shared_bytes = ROW_BYTES * (16 if wide else 8)
        small = {
            "frequencies": frequencies(shape.rope_dims, shape.rope_theta, np.dtype(np.float32))
        }
        if weights.q_norm is not None and weights.k_norm is not None:
            small |= {"q_norm": weights.q_norm, "k_norm": weights.k_norm}
        self._arrays = {  # whose memory must live
            name: device.upload(np.ascontiguousarray(array, np.float32))
            for name, array in small.items()
        }
        made = np.zeros((), ATTENTION)
        for name, array in self._arrays.items():
            made[name] = device.address(array)
        for name in ("heads", "kv_heads", "rope_dims", "gated"):
            made[name] = getattr(shape, name)
        made["eps"] = weights.eps
        self._table = uploaded(device, made)

    @property
    def inputs(self) -> int:
        """Values from the projection: q, with a gate behind each head's where gated, k and v."""
        shape = self.shape
        return (shape.heads * (1 + shape.gated) + 2 * shape.kv_heads) * shape.head_dim

    @property
    def outputs(self) -> int:
        """Values of the result."""
        return self.shape.heads * self.shape.head_dim

    def room(self) -> tuple[DeviceArray, DeviceArray]:
        """Memory for what lies between the launches, for any layer of this shape."""
        sums, ends = self._room()
        return self._device.empty(sums, np.float32), self._device.empty(ends, np.float32)

    def __call__(
        self,
        x: DeviceArray,
        position: DeviceArray,
        held: KeyValues,
        room: tuple[DeviceArray, DeviceArray],
        y: Vector,
    ) -> None:
        """``y`` (heads * head_dim) of x (inputs,), whose key and value are appended to ``held``.

        ``position`` (1,) int32 is the number of tokens before; the caller has checked that it is
        less than the context.
        """
        shape = self.shape
        check("attention's inputs", x, (self.inputs,))
        check("the position", position, (1,))
        check("results", y.floats, (self.outputs,))
        heads, _, width = held.extent
        if (heads, width) != (shape.kv_heads, shape.head_dim):
            raise ValueError(f"keys and values {held.extent} are those of another layer")
        for each, extent in zip(room, self._room(), strict=True):
            check("partial sums", each, extent)
        launch = self._device.launch
        grid = (self._splits, shape.kv_heads, 1)
        arguments = self._table, held.table, x, position, *room
        source = f"attention_{held.kind}"
        shared_bytes = self._shared_bytes
        launch(source, self._kernel, grid, 256, *arguments, shared_bytes=shared_bytes)
        grid = (width // CHUNK, shape.heads, 1)
        numbers = np.int32(width), x, position, np.int32(self._splits)
        launch("attention", "merge", grid, 256, self._table, *numbers, *room, y.floats, y.fixed)

    def _room(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the blocks' sums, and of their maxima and weights' sums."""
        parts = (self.shape.heads, self._splits)
        return (*parts, self.shape.head_dim), (*parts, 2)
