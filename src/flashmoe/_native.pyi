"""Types of the native module (native/bindings.cpp).

Only ``kernels/cpu.py``, ``kernels/scores.py``, ``stream/direct.py`` and ``stream/cache.py`` import
it. What takes longer than some microseconds releases the GIL while it works. A wrong shape, type,
range or alignment is a ValueError or TypeError (``Cache`` says where it is a RuntimeError), never a
crash.
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

class Matrix:
    """A weight matrix of ``inputs`` inputs; keeps the arrays of ``parts`` alive.

    ``parts`` is ``(weight, scales, biases, bits, group, scales_type)`` or ``(weight,
    weight_type)`` with the arrays and codes that the two products take.
    """

    def __init__(self, parts: tuple[Any, ...], inputs: int) -> None: ...

class Expert:
    """A SwiGLU expert of three matrices that fit each other."""

    def __init__(self, gate: Matrix, up: Matrix, down: Matrix) -> None: ...

def project(
    x: npt.NDArray[np.float32],
    matrices: list[Matrix],
    y: npt.NDArray[np.float32],
    threads: int,
    instruction_set: str = "",
    panels: bool = False,
) -> None:
    """Write the products of x (T, in) with each matrix, (T, out) each, one after another to y.

    ``panels``: in the form for many rows (native/panels.h), else as ``matmul_affine``.
    """

def swiglu(
    x: npt.NDArray[np.float32],
    expert: Expert,
    gate: Matrix | None,
    y: npt.NDArray[np.float32],
    threads: int,
    instruction_set: str = "",
    panels: bool = False,
) -> None:
    """Write ``y = down(silu(gate(x)) * up(x))``, times sigmoid(gate(x)): x, y (T, hidden).

    The last gate is a matrix of its own, (1, hidden); ``panels`` is as in :func:`project`.
    """

def experts(
    x: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int64],
    numbers: list[int],
    experts: list[Expert],
    outputs: npt.NDArray[np.float32],
    threads: int,
    instruction_set: str = "",
) -> None:
    """Write ``outputs[t, k] = expert(x[t])`` wherever ``ids[t, k]`` is that expert's number.

    x (T, hidden), ids (T, k), outputs (T, k, hidden); the other places are left as they are.
    """

def add_experts(
    x: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float32],
    numbers: list[int],
    experts: list[Expert],
    y: npt.NDArray[np.float32],
    threads: int,
    instruction_set: str = "",
) -> None:
    """Add ``weights[t, k] * expert(x[t])`` to ``y[t]`` wherever ``ids[t, k]`` is its number.

    Expert by expert in the order given; x and y (T, hidden), ids and weights (T, k). The products
    are those of ``panels``.
    """

def combine(
    outputs: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32],
    instruction_set: str = "",
) -> None:
    """Write ``y[t] = sum_k weights[t, k] * outputs[t, k]``, in the order of k."""

def rms_norm(
    x: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    eps: float,
    y: npt.NDArray[np.float32],
    threads: int,
    instruction_set: str = "",
) -> None:
    """Write ``y = x / sqrt(mean(x^2) + eps) * weight`` over the last axis."""

def add(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], threads: int) -> None:
    """Write ``y += x``, of equal size."""

def route(
    logits: npt.NDArray[np.float32],
    renormalize: bool,
    ids: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float32],
    instruction_set: str = "",
) -> None:
    """Write the largest of logits (T, count), best first, and their softmax: (T, top) each."""

class Block:
    """What surrounds a mixer: its norm (copied), the matrices before and after it."""

    def __init__(
        self, norm: npt.NDArray[np.float32], eps: float, inputs: list[Matrix], out: Matrix
    ) -> None: ...

class DeltaNet:
    """The small weights of a gated delta net, copied; formula in native/decode.h."""

    def __init__(
        self,
        key_heads: int,
        value_heads: int,
        key_dim: int,
        value_dim: int,
        conv: npt.NDArray[np.float32],
        decay: npt.NDArray[np.float32],
        dt_bias: npt.NDArray[np.float32],
        norm: npt.NDArray[np.float32],
        eps: float,
    ) -> None: ...
    def step(
        self,
        qkv: npt.NDArray[np.float32],
        z: npt.NDArray[np.float32],
        b: npt.NDArray[np.float32],
        a: npt.NDArray[np.float32],
        conv_in: npt.NDArray[np.float32],
        delta_in: npt.NDArray[np.float32],
        conv_out: npt.NDArray[np.float32],
        delta_out: npt.NDArray[np.float32],
        y: npt.NDArray[np.float32],
        threads: int,
        instruction_set: str = "",
    ) -> None:
        """One token; writes y and the new state, which is not the old one's memory."""
    def chunk(
        self,
        qkv: npt.NDArray[np.float32],
        z: npt.NDArray[np.float32],
        b: npt.NDArray[np.float32],
        a: npt.NDArray[np.float32],
        conv_in: npt.NDArray[np.float32],
        delta_in: npt.NDArray[np.float32],
        conv_out: npt.NDArray[np.float32],
        delta_out: npt.NDArray[np.float32],
        y: npt.NDArray[np.float32],
        start: int,
        threads: int,
        instruction_set: str = "",
    ) -> None:
        """T tokens, the first at ``start``: qkv (T, channels), z, b and a likewise, y as z."""

    def block(
        self,
        x: npt.NDArray[np.float32],
        block: Block,
        conv_in: npt.NDArray[np.float32],
        delta_in: npt.NDArray[np.float32],
        conv_out: npt.NDArray[np.float32],
        delta_out: npt.NDArray[np.float32],
        y: npt.NDArray[np.float32],
        threads: int,
        instruction_set: str = "",
    ) -> None:
        """Write ``y = x + out(step(inputs(norm(x))))`` for one token, x and y (1, hidden)."""

class KeyValues:
    """Keys and values of a layer, (kv_heads, context, dim), kept alive.

    ``kind`` 0: float32; 1: bfloat16 as uint16; 2: int8 with scales (kv_heads, context); 3: float16
    as uint16.
    """

    def __init__(
        self,
        kind: int,
        keys: npt.NDArray[Any],
        values: npt.NDArray[Any],
        key_scales: npt.NDArray[np.float32] | None,
        value_scales: npt.NDArray[np.float32] | None,
    ) -> None: ...

class Attention:
    """The dimensions and norms of an attention layer, copied; formula in native/decode.h."""

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        dim: int,
        rope_dims: int,
        gated: bool,
        q_norm: npt.NDArray[np.float32] | None,
        k_norm: npt.NDArray[np.float32] | None,
        eps: float,
    ) -> None: ...
    def step(
        self,
        q: npt.NDArray[np.float32],
        k: npt.NDArray[np.float32],
        v: npt.NDArray[np.float32],
        cos: npt.NDArray[np.float32],
        sin: npt.NDArray[np.float32],
        kv: KeyValues,
        position: int,
        y: npt.NDArray[np.float32],
        threads: int,
        instruction_set: str = "",
    ) -> None:
        """One token at ``position``; its key and value are written there, then attended to."""
    @property
    def unit_floats(self) -> int:
        """The most floats of scratch that a thread of :meth:`chunk` has."""
    def chunk(
        self,
        q: npt.NDArray[np.float32],
        k: npt.NDArray[np.float32],
        v: npt.NDArray[np.float32],
        cos: npt.NDArray[np.float32],
        sin: npt.NDArray[np.float32],
        kv: KeyValues,
        position: int,
        y: npt.NDArray[np.float32],
        threads: int,
        instruction_set: str = "",
    ) -> None:
        """Several tokens from ``position`` on, each array with the token first."""

    def block(
        self,
        x: npt.NDArray[np.float32],
        block: Block,
        cos: npt.NDArray[np.float32],
        sin: npt.NDArray[np.float32],
        kv: KeyValues,
        position: int,
        y: npt.NDArray[np.float32],
        threads: int,
        instruction_set: str = "",
    ) -> None:
        """Write ``y = x + out(step(inputs(norm(x))))`` for one token, x and y (1, hidden)."""

def instruction_sets() -> list[str]:
    """Names of the sets of kernels that this machine executes, the best first.

    Each may be passed as ``instruction_set``; an empty name is the best.
    """

def xxh3_64(buffer: Buffer | npt.NDArray[Any], portable: bool = False) -> int:
    """XXH3 64-bit, seed 0, of a contiguous buffer of any length; ``portable``: without AVX2."""

def touch(buffer: Buffer | npt.NDArray[Any], threads: int) -> int:
    """Load every whole 64-byte line of a contiguous buffer; returns their bitwise or.

    The plain read that the speed of a kernel is compared with.
    """

def busy_seconds() -> float:
    """Time this thread has spent in native code so far, waiting for reads included."""

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

    def describe(self, file: int, begin: int, size: int, checksums: Sequence[int]) -> None:
        """Record r of a file is ``size`` bytes at ``begin + r * size``, of that checksum."""

    def into(self, arena: npt.NDArray[np.uint8], slot_bytes: int) -> None:
        """Slot s is the ``slot_bytes`` bytes of ``arena`` at ``s * slot_bytes``. The arena is kept
        alive until the reader is closed."""

    def submit_records(
        self, file: int, records: Sequence[int], slots: Sequence[int], urgency: int
    ) -> int:
        """``submit`` for described records, each into a slot: demanded (0), hinted (1), or guessed
        (2), which is read only where the drive would be idle. The ticket of the first; those of
        the others follow. All are checked before any is queued."""

    def submit_idle_record(self, file: int, record: int, slot: int) -> int:
        """``submit_idle`` for a described record, into a slot."""

    def submit_idle(
        self, file: int, offset: int, destination: npt.NDArray[np.uint8], checksum: int
    ) -> int:
        """``submit`` for a read that is started only once there has been no other for 50 ms."""

    def promote(self, ticket: int) -> None:
        """Move a read that has not started to the demand queue; one that has counts as demanded."""

    def promote_all(self, tickets: Sequence[int]) -> None:
        """``promote`` for each, in this order."""

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

    def collect(
        self, tickets: Sequence[int], block: bool
    ) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Those of the tickets that have finished, in that order, which are forgotten: the good
        ones, and (ticket, code, detail) of the others. With ``block`` it waits until there is one.
        """

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

DRAW_BLOCK: int
DRAW_GUESS: float

class Scores:
    """A row of logits (n,), float32 or float64, those at ``places`` (rising) replaced by
    ``values``; keeps the arrays. Formulas in native/draw.h; a number for each DRAW_BLOCK scores.
    """

    def __init__(
        self,
        logits: npt.NDArray[np.floating],
        places: npt.NDArray[np.int64],
        values: npt.NDArray[np.float64],
    ) -> None: ...
    def peaks(
        self, y: npt.NDArray[np.float64], threads: int, instruction_set: str = ""
    ) -> None: ...
    def masses(
        self,
        peak: float,
        factor: float,
        y: npt.NDArray[np.float64],
        threads: int,
        instruction_set: str = "",
    ) -> None: ...
    def guesses(
        self,
        peak: float,
        factor: float,
        y: npt.NDArray[np.float64],
        threads: int,
        instruction_set: str = "",
    ) -> None:
        """Masses in float32, each within DRAW_GUESS of the sum of all; float32 logits only, none of
        them changed, up to 2^24."""

    def widen(self, begin: int, y: npt.NDArray[np.float64]) -> None:
        """Write as many scores as y has, from ``begin`` on."""

    def above(
        self,
        peaks: npt.NDArray[np.float64],
        least: float,
        places: npt.NDArray[np.int64],
        values: npt.NDArray[np.float64],
    ) -> int:
        """Write places and values of the scores not below ``least``; returns how many there are,
        which may be more than there was room for."""

    def highest(
        self,
        peaks: npt.NDArray[np.float64],
        least: float,
        ordered: bool,
        places: npt.NDArray[np.int64],
        values: npt.NDArray[np.float64],
    ) -> int:
        """Write as many of the highest scores as there is room for, equal ones by lowest place, in
        falling order, or the lowest of them last and the others in none. ``least`` is any number
        that so many are not below. Returns how many were found."""

    def lowest(self, enough: float) -> float:
        """The lowest score of all, or of some, if that is below ``enough``."""

    def kept_sums(
        self,
        peaks: npt.NDArray[np.float64],
        least: float,
        peak: float,
        factor: float,
        min_p: float,
        y: npt.NDArray[np.float64],
        instruction_set: str = "",
    ) -> None:
        """Write the sum of the weights not below ``min_p``, one by one by place, at the end of each
        block; no score below ``least`` weighs as much."""

    def slices(
        self,
        peak: float,
        factor: float,
        temperature: float,
        steps: float,
        least: float,
        last: int,
        min_p: float,
        numbers: npt.NDArray[np.uint16],
        y: npt.NDArray[np.float64],
        instruction_set: str = "",
    ) -> float:
        """Write the slice of each score, (score - peak) / temperature * steps rounded down, or the
        last, and the sum of the weights of each, one by one by place. In none, 65,535, is what is
        below ``least``, equal to it beyond place ``last``, or weighs nothing or less than
        ``min_p``. Returns such a sum over all slices, with what weighs less than ``min_p``."""

    def members(
        self,
        numbers: npt.NDArray[np.uint16],
        slice: int,
        places: npt.NDArray[np.int64],
        values: npt.NDArray[np.float64],
    ) -> int:
        """Write places and scores of a slice, as ``above``."""

def weights(
    x: npt.NDArray[np.float64],
    peak: float,
    factor: float,
    y: npt.NDArray[np.float64],
    instruction_set: str = "",
) -> None:
    """Write the weight of each score of x to y."""

class Cache:
    """The cache policy; calls and errors as in ``stream/cache.py``, an expert as two numbers.

    Layers outside the cache are a RuntimeError, experts outside 0 to 32,767 a ValueError. An
    absent slot is -1, and (slot, layer, expert) of an admission names who was evicted, or -1, -1.
    """

    def __init__(self, slots: int, layers: int, top_k: int | None) -> None: ...
    @property
    def slots(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def free(self) -> int: ...
    @property
    def pinned(self) -> int: ...
    def is_pinned(self, layer: int, expert: int) -> bool: ...
    def __len__(self) -> int: ...
    def resident(self, layer: int) -> int: ...
    def lookup(self, layer: int, expert: int) -> int: ...
    def slot(self, layer: int, expert: int) -> int: ...
    def admit(
        self, layer: int, expert: int, chance: float | None
    ) -> tuple[int, int, int] | None: ...
    def lookup_all(self, layer: int, experts: Sequence[int]) -> list[int]: ...
    def sweep(
        self, layer: int, experts: Sequence[int], rows: npt.NDArray[np.int64], tokens: int
    ) -> list[int]:
        """``rows`` (last tokens, experts a token), C-contiguous."""

    def slots_of(self, layer: int, experts: Sequence[int]) -> list[int]: ...
    def admit_all(
        self, layer: int, experts: Sequence[int], chances: Sequence[float] | None
    ) -> list[tuple[int, int, int]]: ...
    def exchange(
        self,
        layer: int,
        leaving: Sequence[int],
        gains: Sequence[int],
        wanted: Sequence[int],
        room: int,
    ) -> list[tuple[int, int, int]]: ...
    def pin_all(self, layer: int, experts: Sequence[int]) -> None: ...
    def unpin_all(self, layer: int, experts: Sequence[int]) -> None: ...
    sealed: bool
    def tell(self, places: npt.NDArray[np.int32]) -> None:
        """``places`` (layers, experts), C-contiguous, kept alive and written."""

    def reveal_all(self, layer: int, experts: Sequence[int]) -> None: ...
    def reserve(self) -> int: ...
    def unreserve(self, slot: int) -> None: ...
    def place(self, layer: int, expert: int, slot: int) -> None: ...
    def seed(self, shares: npt.NDArray[np.float64]) -> None:
        """``shares`` (layers, experts)."""

    def retire(self, count: int, least: int) -> list[int]: ...
    def restore(self, slots: Sequence[int]) -> None: ...
    def pin(self, layer: int, expert: int) -> None: ...
    def unpin(self, layer: int, expert: int) -> None: ...
    def drop(self, layer: int, expert: int) -> int: ...
