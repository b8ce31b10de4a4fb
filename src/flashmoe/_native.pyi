"""Types of the native module (native/bindings.cpp).

Only ``kernels/cpu.py`` and ``stream/direct.py`` import it. Every function releases the GIL while
it works. A wrong shape, type, range or alignment is a ValueError or TypeError, never a crash.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

def matmul_affine(
    x: npt.NDArray[np.float32],
    weight: npt.NDArray[np.uint32],
    scales: npt.NDArray[Any],
    biases: npt.NDArray[Any],
    bits: int,
    group: int,
    scales_type: int,
    y: npt.NDArray[np.float32],
    threads: int,
    instruction_set: str = "",
) -> None:
    """Write ``y = x @ dequantize(weight).T``: x (T, in), weight (out, in * bits / 32), y (T, out).

    ``scales`` and ``biases`` (out, in / group) are float32 for ``scales_type`` 0, and uint16
    holding the bits of F16 (1) or BF16 (2). The formula is in native/kernels.h.
    """

def matmul_plain(
    x: npt.NDArray[np.float32],
    weight: npt.NDArray[Any],
    weight_type: int,
    y: npt.NDArray[np.float32],
    threads: int,
    instruction_set: str = "",
) -> None:
    """Write ``y = x @ weight.T``: x (T, in), weight (out, in), y (T, out).

    ``weight`` is float32 for ``weight_type`` 0, else uint16 holding the bits of F16 or BF16.
    """

def expert_swiglu(
    x: npt.NDArray[np.float32],
    gate: tuple[Any, ...],
    up: tuple[Any, ...],
    down: tuple[Any, ...],
    y: npt.NDArray[np.float32],
    threads: int,
    instruction_set: str = "",
) -> None:
    """Write ``y = down(silu(gate(x)) * up(x))``: x and y (T, hidden).

    A matrix is ``(weight, scales, biases, bits, group, scales_type)`` or ``(weight, weight_type)``
    with the arrays and codes that the two products take.
    """

def instruction_sets() -> list[str]:
    """Names of the sets of kernels that this machine executes, the best first.

    Each may be passed as ``instruction_set``; an empty name is the best.
    """

def xxh3_64(buffer: Buffer | npt.NDArray[Any]) -> int:
    """XXH3 64-bit, seed 0, of a contiguous buffer of any length."""

def touch(buffer: Buffer | npt.NDArray[Any], threads: int) -> int:
    """Load every whole 64-byte line of a contiguous buffer; returns their bitwise or.

    The plain read that the speed of a kernel is compared with.
    """

class Reader:
    """Checked direct reads, ``threads`` at a time in lane 0; the states of a request and the lanes
    are in native/io.h.

    An unknown or forgotten ticket is an IndexError. A reader that is collected joins its threads
    first, so no read outlives it. In a forked child every call but ``close`` is a RuntimeError.
    """

    def __init__(self, threads: int) -> None: ...
    def add_lane(self, threads: int) -> int:
        """Number of one more lane, for one more drive, with threads of its own; at most 64."""

    def open(self, path: str, direct: bool, lane: int = 0) -> int:
        """Index of the opened file; OSError when it cannot be opened."""

    def is_direct(self, file: int) -> bool:
        """Whether reads of this file, or of all that it is made of, bypass the page cache."""

    def combine(self, begin: int, stride: int, records: Sequence[Sequence[tuple[int, int]]]) -> int:
        """Index of a file whose record r, ``stride`` bytes at ``begin + r * stride``, is at any of
        ``records[r]``: (index of an open file, offset) of equal copies. A read lies within one.
        """

    def submit(
        self,
        file: int,
        offset: int,
        destination: npt.NDArray[np.uint8],
        checksum: int,
        demand: bool,
    ) -> int:
        """Ticket of a read of exactly ``destination.nbytes`` bytes; all multiples of 4,096.

        RuntimeError once the reader is closed.
        """

    def promote(self, ticket: int) -> None:
        """Move a hinted read that has not started to the demand queue."""

    def cancel(self, ticket: int) -> bool:
        """Whether it had not started; then the ticket is forgotten. Else it must be waited for."""

    def done(self, ticket: int) -> bool:
        """Whether ``wait`` would return at once."""

    def wait(self, ticket: int) -> tuple[int, int]:
        """Wait, forget the ticket, and return (code, detail).

        Code 0: read and verified. 1: the system refused (detail: errno; ECANCELED after
        ``close``). 2: the file ended early (detail: bytes got). 3: another checksum (detail).
        4: read and verified after other copies failed (detail: how many; ``failures`` tells).
        """

    def wait_any(self, tickets: Sequence[int]) -> int:
        """The ticket that finished first, waiting for one if none has; it is not forgotten."""

    def drain(self) -> None:
        """Drop what is queued, let reads under way end, forget every ticket and destination."""

    @property
    def bytes_read(self) -> int:
        """Bytes the system delivered, those of failed reads included."""

    @property
    def lanes(self) -> list[tuple[int, int, int]]:
        """What each lane has done: (reads, failed ones among them, bytes delivered)."""

    def failures(self) -> list[tuple[int, int, int, int, int]]:
        """(ticket, open file, offset, code, detail) of each read that failed since the last call.

        Where there are copies a ticket may fail several times, and succeed in the end.
        """

    def close(self) -> None:
        """Drop what is queued, let reads under way end, join the threads. Repeating it is fine.

        ``wait`` still answers; destinations are no longer kept alive. Nothing in a forked child.
        """
