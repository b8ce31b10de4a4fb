"""What the bytes of a weight mean: formats, packing, and numpy quantise and dequantise.

Owns the two formats a store may hold and the :class:`Matrix` in which ``store`` and ``kernels``
meet. Knows nothing of files or of arithmetic on activations.

Affine weights are MLX's: per group of consecutive inputs, ``w = q * scale + bias`` with unsigned
codes ``q`` packed least significant bit first into little-endian 32-bit words, so that code k of
a row occupies bits ``[bits * k, bits * (k + 1))`` of the row's bit stream.

Invariant: a quantised weight *is* the float32 number ``f32(f32(q * scale) + bias)``. Every
kernel, in whatever precision it goes on, starts from that number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from flashmoe.errors import InputError

Array: TypeAlias = npt.NDArray[Any]
FloatName: TypeAlias = Literal["BF16", "F16", "F32"]

FLOATS: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
"""Floating-point element types of a store, by their safetensors names."""

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)


@dataclass(frozen=True)
class Affine:
    """Codes of ``bits`` bits with one scale and one bias, of type ``scales``, a group."""

    bits: int
    group: int
    scales: FloatName = "BF16"

    def __post_init__(self) -> None:
        if self.bits not in AFFINE_BITS:
            raise InputError(f"{self.bits} bits are not supported; choose one of {AFFINE_BITS}")
        if self.group not in GROUPS:
            raise InputError(f"group size {self.group} is not supported; choose one of {GROUPS}")
        if self.scales not in FLOATS:
            raise InputError(f"scales of type {self.scales!r} are not among {tuple(FLOATS)}")


@dataclass(frozen=True)
class Plain:
    """Weights stored as floating-point numbers of type ``dtype``, unquantised."""

    dtype: FloatName

    def __post_init__(self) -> None:
        if self.dtype not in FLOATS:
            raise InputError(f"weights of type {self.dtype!r} are not among {tuple(FLOATS)}")


Format: TypeAlias = Affine | Plain


@dataclass(frozen=True)
class Part:
    """One array of a stored matrix: its suffix, safetensors dtype and shape."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The numpy (or ml_dtypes) element type."""
        return np.dtype(np.uint32) if self.dtype == "U32" else FLOATS[self.dtype]


def parts(form: Format, shape: tuple[int, ...]) -> tuple[Part, ...]:
    """The arrays that hold a tensor in this format, in their order on disk.

    A plain tensor may have any shape; an affine one is an (out, in) matrix.

    Raises:
        InputError: the inputs do not divide into groups.
    """
    if isinstance(form, Plain):
        return (Part("weight", form.dtype, shape),)
    rows, columns = shape
    if columns % form.group:
        fitting = [group for group in GROUPS if columns % group == 0]
        raise InputError(
            f"{columns} inputs do not divide into groups of {form.group}; "
            + (f"use --group {fitting[-1]}" if fitting else "keep this matrix at 16 bits")
        )
    words, groups = columns * form.bits // 32, columns // form.group
    scale = (rows, groups)
    return (
        Part("weight", "U32", (rows, words)),
        Part("scales", form.scales, scale),
        Part("biases", form.scales, scale),
    )


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Matrix:
    """An (out, in) weight matrix as stored; arrays as :func:`parts` describes them."""

    form: Format
    shape: tuple[int, int]
    weight: Array
    scales: Array | None = None
    biases: Array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return sum(array.nbytes for array in self.arrays())

    def rows(self, index: slice | Array) -> Matrix:
        """The matrix made of some of the rows; a view for a slice, a copy for an index array."""
        scales = None if self.scales is None else self.scales[index]
        biases = None if self.biases is None else self.biases[index]
        weight = self.weight[index]
        return Matrix(self.form, (len(weight), self.shape[1]), weight, scales, biases)

    def columns(self, start: int, stop: int) -> Matrix:
        """The matrix made of the inputs ``start`` to ``stop``; views.

        Raises:
            InputError: a border falls inside a quantisation group.
        """
        shape = (self.shape[0], stop - start)
        if isinstance(self.form, Plain):
            return Matrix(self.form, shape, self.weight[:, start:stop])
        assert self.scales is not None and self.biases is not None
        group, bits = self.form.group, self.form.bits
        if start % group or stop % group:
            raise InputError(f"inputs {start} to {stop} cut a quantisation group of {group}")
        words = slice(start * bits // 32, stop * bits // 32)
        groups = slice(start // group, stop // group)
        return Matrix(
            self.form, shape, self.weight[:, words], self.scales[:, groups], self.biases[:, groups]
        )

    def arrays(self) -> tuple[Array, ...]:
        """The stored arrays in the order of :func:`parts`."""
        if self.scales is None or self.biases is None:
            return (self.weight,)
        return (self.weight, self.scales, self.biases)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Expert:
    """One SwiGLU expert: ``down(silu(gate(x)) * up(x))``.

    gate and up are (intermediate, hidden), down is (hidden, intermediate).
    """

    gate: Matrix
    up: Matrix
    down: Matrix


def matrix(form: Format, shape: tuple[int, int], arrays: dict[str, Array]) -> Matrix:
    """Assemble a :class:`Matrix` from its arrays by suffix."""
    return Matrix(form, shape, arrays["weight"], arrays.get("scales"), arrays.get("biases"))


def pack(codes: Array, bits: int) -> Array:
    """Codes (rows, n), each below ``2**bits``, to little-endian words (rows, n * bits / 32)."""
    rows, count = codes.shape
    if bits == 8:
        return np.ascontiguousarray(codes, dtype=np.uint8).view("<u4")
    if 8 % bits == 0:
        per_byte = 8 // bits
        grouped = codes.astype(np.uint8, copy=False).reshape(rows, count // per_byte, per_byte)
        packed = grouped[..., 0].copy()
        for k in range(1, per_byte):
            packed |= grouped[..., k] << np.uint8(bits * k)
        return packed.view("<u4")
    # 32 codes of an odd width fill exactly `bits` words: lay them there one code at a time.
    blocks = codes.astype(np.uint64, copy=False).reshape(rows, count // 32, 32)
    words = np.zeros((rows, count // 32, bits + 1), np.uint64)
    for k in range(32):
        word, shift = divmod(bits * k, 32)
        words[..., word] |= (blocks[..., k] << np.uint64(shift)) & np.uint64(0xFFFFFFFF)
        words[..., word + 1] |= (blocks[..., k] << np.uint64(shift)) >> np.uint64(32)
    return words[..., :bits].astype("<u4").reshape(rows, count * bits // 32)


def unpack(words: Array, bits: int) -> Array:
    """Words (rows, n * bits / 32) to codes (rows, n) of type uint8; inverse of :func:`pack`."""
    rows, length = words.shape
    words = np.ascontiguousarray(words, dtype="<u4")
    if bits == 8:
        return words.view(np.uint8)
    mask = (1 << bits) - 1
    if 8 % bits == 0:
        octets = words.view(np.uint8)
        codes = np.empty((*octets.shape, 8 // bits), np.uint8)
        for k in range(8 // bits):
            codes[..., k] = (octets >> np.uint8(bits * k)) & np.uint8(mask)
        return codes.reshape(rows, length * 32 // bits)
    blocks = words.astype(np.uint64).reshape(rows, length // bits, bits)
    codes = np.empty((rows, length // bits, 32), np.uint8)
    for k in range(32):
        word, shift = divmod(bits * k, 32)
        value = blocks[..., word] >> np.uint64(shift)
        if shift + bits > 32:
            value = value | blocks[..., word + 1] << np.uint64(32 - shift)
        codes[..., k] = value & np.uint64(mask)
    return codes.reshape(rows, length * 32 // bits)


def quantize(weights: Array, form: Affine) -> Matrix:
    """Quantise (out, in) weights as MLX's affine mode does, bit for bit (SPEC 2.1).

    Per group: ``scale = max((max - min) / n, 1e-7)``, negated unless the minimum is the larger
    in magnitude, then stretched so that the larger end falls on a code exactly. Scale and bias
    are rounded to ``form.scales`` only after the codes are computed.

    Raises:
        InputError: the inputs do not divide into groups, or a weight is not finite.
    """
    rows, columns = weights.shape
    parts(form, (rows, columns))
    grouped = weights.astype(np.float32, copy=False).reshape(rows, columns // form.group, -1)
    high, low = grouped.max(axis=-1), grouped.min(axis=-1)
    if not (np.isfinite(high).all() and np.isfinite(low).all()):
        raise InputError("a weight is NaN or infinite: the checkpoint is damaged")
    top = np.float32(2**form.bits - 1)
    from_low = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / top, np.float32(1e-7))
    scale = np.where(from_low, scale, -scale)
    edge = np.where(from_low, low, high)
    steps = np.rint(edge / scale)
    on_code = steps != 0
    scale = np.where(on_code, edge / np.where(on_code, steps, np.float32(1)), scale)
    bias = np.where(on_code, edge, np.float32(0))
    codes = np.rint((grouped - bias[..., None]) / scale[..., None])
    codes = np.clip(codes, 0, top).astype(np.uint8).reshape(rows, columns)
    kind = FLOATS[form.scales]
    packed = pack(codes, form.bits)
    return Matrix(form, (rows, columns), packed, scale.astype(kind), bias.astype(kind))


def dequantize(stored: Matrix) -> Array:
    """The weights as a float32 array (out, in), exactly as the module docstring defines them."""
    if isinstance(stored.form, Plain):
        return stored.weight.astype(np.float32)
    assert stored.scales is not None and stored.biases is not None
    rows, columns = stored.shape
    form = stored.form
    weights = unpack(stored.weight, form.bits).astype(np.float32)
    grouped = weights.reshape(rows, columns // form.group, form.group)
    grouped *= stored.scales.astype(np.float32)[..., None]
    grouped += stored.biases.astype(np.float32)[..., None]
    return weights


def describe(form: Format) -> dict[str, int | str]:
    """The format as a JSON object of a manifest; inverse of :func:`parse`."""
    if isinstance(form, Plain):
        return {"dtype": form.dtype}
    return {"bits": form.bits, "group": form.group, "scales": form.scales}


def parse(description: object) -> Format:
    """Read a format back from its JSON object.

    Raises:
        InputError: the object is not one that :func:`describe` writes.
    """
    match description:
        case {"dtype": str(dtype), **rest} if not rest:
            return Plain(dtype)  # type: ignore[arg-type]
        case {"bits": int(bits), "group": int(group), "scales": str(scales), **rest} if not rest:
            return Affine(bits, group, scales)  # type: ignore[arg-type]
    raise InputError(f"{description!r} is not a weight format that this version knows")
