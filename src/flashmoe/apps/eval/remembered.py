"""What another model has made of the same text, kept as hidden states.

Owns the temporary file and that model's head. A divergence needs both models' distribution at
every token. Both engines at once would share the memory, and each read its experts more often; all
logits of one are half a megabyte a token with a vocabulary of 248,000. Its hidden states are 8 KB
with a width of 2,048, and its head alone makes the very same logits of them: so the models run one
after the other, each in the whole budget, and the divergence is exact. (Where a GPU computes, the
head is the processor's, and differs from the GPU's by rounding.)
"""

from __future__ import annotations

import tempfile
from types import TracebackType

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels import Kernels
from flashmoe.model.head import Head, tensor_names
from flashmoe.model.trunk import Trunk
from flashmoe.quant import Array
from flashmoe.store.reader import Store


class Remembered:
    """Hidden states (n, hidden) on disk, in the system's directory for temporary files."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._file = tempfile.TemporaryFile(prefix="flashmoe-eval-")  # noqa: SIM115
        self._head: Head | None = None

    def write(self, hidden: Array) -> None:
        """Keep hidden states (t, hidden).

        Raises:
            InputError: the disk is full.
        """
        try:
            self._file.write(hidden.astype(np.float32).tobytes())
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()} cannot hold the other model's hidden states "
                f"({error.strerror}): set TMPDIR to a directory with more room, or take fewer "
                "windows (--windows)"
            ) from error

    def begin(self, kernels: Kernels) -> None:
        """All is written: load the head, and go back to the first.

        To be done before another engine is planned, since what the head weighs counts.

        Raises:
            ReadError: the head cannot be read.
        """
        self._file.flush()
        self._file.seek(0)
        shape, tensors = self.store.shape, self.store.trunk(tensor_names(self.store.shape))
        self._head = Head(shape, Trunk(tensors, kernels.dtype), kernels)

    def logits(self, rows: int) -> Array:
        """Logits (rows, vocabulary) of the next ones."""
        assert self._head is not None
        width = self.store.shape.hidden
        data = self._file.read(rows * width * 4)
        return self._head.logits(np.frombuffer(data, np.float32).reshape(rows, width))

    def close(self) -> None:
        """Give the file and the head back."""
        self._file.close()
        self._head = None

    def __enter__(self) -> Remembered:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
