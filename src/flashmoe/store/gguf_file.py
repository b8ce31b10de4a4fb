"""One GGUF file, open for reading: its metadata, its tensors, and their exact form in our formats.

Owns the reading of rows, and which types of tensor are accepted. Does not parse the header
(``gguf_header``) or take blocks apart (``gguf_blocks``).

Invariant: every weight read here equals gguf.quants' dequantisation in float32.
"""

from __future__ import annotations

import math
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from flashmoe.errors import CheckpointError
from flashmoe.quant import FLOATS, Affine, Array, FloatName, Format, Matrix, Plain
from flashmoe.store.gguf_blocks import BITS, ZERO_CODE, affine, bias_overflows
from flashmoe.store.gguf_header import read_header, type_name
from flashmoe.store.published_files import OpenFiles

WINDOW_BYTES = 1 << 20
"""The scales of a tensor are looked through in pieces of this size."""

PLAIN: dict[int, FloatName] = {
    GGMLQuantizationType.F32: "F32",
    GGMLQuantizationType.F16: "F16",
    GGMLQuantizationType.BF16: "BF16",
}
ACCEPTED = "F32, F16, BF16, Q8_0, Q4_0 and Q4_1"


class GgufFile:
    """A GGUF file whose header has been checked; reads its tensors through ``files``."""

    def __init__(self, files: OpenFiles, path: Path) -> None:
        """Walk the header.

        Raises:
            CheckpointError: the header is malformed, of an unknown version, or one of a split.
        """
        self._files = files
        self.path = path
        header = read_header(files, path)
        self.fields = header.fields
        self.identity = (header.identity,)
        self._tensors = header.tensors
        self._scales: dict[str, FloatName] = {}

    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the file's order."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape in numpy's order: (out, in)."""
        return self._tensors[name].shape

    def form(self, name: str) -> Format:
        """The format that holds the tensor exactly.

        The first time for a Q4_0 or Q8_0 tensor, all its scales are read: they are F16 unless
        -8 or -128 times one of them would overflow F16, and then F32 for the whole tensor.

        Raises:
            CheckpointError: the tensor's type is not accepted, or a scale is not finite.
        """
        kind = self._tensors[name].kind
        if kind in PLAIN:
            return Plain(PLAIN[kind])
        if kind not in BITS:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is of type {type_name(kind)}; accepted are "
                f"{ACCEPTED}: give a file quantised to one of these"
            )
        if name not in self._scales:
            self._scales[name] = self._choose_scales(name)
        return Affine(BITS[GGMLQuantizationType(kind)], 32, self._scales[name])

    def rows(self, name: str, start: int, stop: int) -> Matrix:
        """Rows of the tensor seen as (rows, in), read from disk in the tensor's own format."""
        form = self.form(name)
        tensor = self._tensors[name]
        blocks = self._blocks(name, start, stop)
        if isinstance(form, Plain):
            weight = blocks.reshape(stop - start, -1 if blocks.size else 0)
            weight = weight.view(FLOATS[form.dtype])
            return Matrix(form, (stop - start, tensor.shape[-1]), weight)
        return affine(blocks, tensor.kind, form, f"{self.path}: tensor {name!r}")

    def values(self, name: str) -> Array:
        """A whole unquantised tensor in its own type and shape."""
        form = self.form(name)
        if isinstance(form, Affine):
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is {type_name(self._tensors[name].kind)} where "
                "plain numbers are expected: give a file that keeps it in F32"
            )
        shape = self.shape(name)
        return self.rows(name, 0, math.prod(shape[:-1])).weight.reshape(shape)

    def _blocks(self, name: str, start: int, stop: int) -> Array:
        """Bytes of some rows, as (rows, blocks a row, bytes a block)."""
        tensor = self._tensors[name]
        elements, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        row = tensor.shape[-1] // elements
        raw = self._files.read(
            self.path,
            tensor.offset + start * row * nbytes,
            (stop - start) * row * nbytes,
            f"tensor {name!r}",
        )
        return raw.reshape(stop - start, row, nbytes)

    def _choose_scales(self, name: str) -> FloatName:
        tensor = self._tensors[name]
        zero = ZERO_CODE.get(GGMLQuantizationType(tensor.kind))
        if zero is None:
            return "F16"
        rows = math.prod(tensor.shape[:-1])
        step = max(1, rows * WINDOW_BYTES // tensor.nbytes)
        for start in range(0, rows, step):
            blocks = self._blocks(name, start, min(rows, start + step))
            if bias_overflows(blocks, zero, f"{self.path}: tensor {name!r}"):
                return "F32"
        return "F16"
