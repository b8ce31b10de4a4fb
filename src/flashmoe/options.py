"""What a caller can choose: the only home of a default.

Owns four frozen dataclasses for running a model (a conversion resolves its own options, in
``store.plan``). Command-line flags, request fields and documentation read their
defaults from here and nowhere else. Anything that changes the answer says so.

Invariant: an object that exists holds values of the right type and range; anything else is
refused by field, value and what it must be.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from flashmoe.errors import InputError

DEFAULT_CONTEXT_TOKENS = 4096
"""The longest timeline planned for where the caller names none."""

KV_KINDS = ("f32", "f16", "bf16", "int8")
"""Forms in which keys and values may be held; all but the first round them."""

MAX_THREADS = 1024
"""More threads than any machine this runs on has processors: a larger number is a mistake."""

DEFAULT_IO_THREADS = 4
"""Reads under way at once where measuring the disk would not pay."""

MAX_IO_THREADS = 64

DEFAULT_DISK_BYTES = 10 << 30
"""What a prefix cache may take on disk: some twenty conversations of 8,000 tokens with a model of
the 35B shape (keys and values 164 MB, five states 315 MB), and half of such a store."""

Io: TypeAlias = Literal["direct", "buffered", "os"]
"""How experts are read and kept: see :class:`Runtime`."""

_TINY = 5e-324  # the least number above 0


def _check(ok: bool, name: str, value: object, wanted: str) -> None:
    if not ok:
        raise InputError(f"{name} is {value!r}; it must be {wanted}")


def _whole(name: str, value: object, wanted: str, low: int, high: int | None = None) -> None:
    """A whole number from ``low`` to ``high``; True and 1.0 are none."""
    fits = type(value) is int and low <= value and (high is None or value <= high)
    _check(fits, name, value, f"a whole number, {wanted}")


def _real(name: str, value: object, wanted: str, low: float, high: float) -> None:
    """A number from ``low`` to ``high``; NaN is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    _check(number and low <= value <= high, name, value, f"a number {wanted}")  # type: ignore[operator]


def _flag(name: str, value: object) -> None:
    _check(isinstance(value, bool), name, value, "True or False")


def check_types(**given: tuple[object, type | tuple[type, ...]]) -> None:
    """Refuse what is of another kind than its name takes.

    Raises:
        InputError: names it, and the kind.
    """
    for name, (value, kinds) in given.items():
        if not isinstance(value, kinds):
            wanted = kinds if isinstance(kinds, tuple) else (kinds,)
            kind = " or ".join(one.__name__ for one in wanted if one is not type(None))
            raise InputError(f"{name} is {value!r}; it must be a {kind}")


@dataclass(frozen=True)
class Budget:
    """Memory that the engine may use, and the timelines it is planned for.

    ``ram_bytes`` bounds the peak resident memory of the whole process; None takes what
    ``stream.budget`` recommends for this machine. ``context_tokens`` is the longest timeline;
    None takes :data:`DEFAULT_CONTEXT_TOKENS`, or the model's own limit where
    that is smaller. ``slots`` pins the number of
    expert slots instead of filling the budget (it is still refused when it does not fit).
    ``sessions`` is how many timelines may live at once, each of them as long as that. ``kv`` is
    how keys and values are held, whatever the activations' type: ``f16`` or ``bf16`` in 16 bits,
    ``int8`` in 8, or ``f32``, which keeps them as they are computed. The form changes the answer,
    so whoever compares answers to the last digits (an oracle in float64 above all) names ``f32``.
    ``host_bytes`` are set aside for the program around the engine: what a server's requests take.
    ``vram_bytes`` bounds what is taken of a GPU's memory, where one computes; None takes what is
    free there, less a margin.
    """

    ram_bytes: int | None = None
    context_tokens: int | None = None
    slots: int | None = None
    sessions: int = 1
    kv: str = "f16"
    host_bytes: int = 0
    vram_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("ram_bytes", "context_tokens", "slots", "vram_bytes"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), "at least 1", 1)
        _whole("sessions", self.sessions, "at least 1", 1)
        _whole("host_bytes", self.host_bytes, "0 or more", 0)
        _check(self.kv in KV_KINDS, "kv", self.kv, f"one of {', '.join(KV_KINDS)}")


@dataclass(frozen=True)
class Runtime:
    """How the work is done. Nothing here changes a single bit of the answer.

    ``threads`` compute; None takes one a processor that this process may run on.
    ``chunk_tokens`` prompt tokens pass a layer together; None lets the engine choose for each
    prompt (``stream.chunks``). A number is kept as it is, and is at most the context's; a multiple
    of 64 keeps the answer independent of it, to the last bit. ``hints`` starts expert reads as soon
    as the router has chosen, before the shared expert is computed, and lets the disk read what
    the next layer is likely to choose while it would be idle. ``io`` is how experts are read and
    kept: ``direct`` into slots past the page cache, where the file system allows it;
    ``buffered`` into slots through the page cache; ``os`` leaves the keeping to the page cache:
    there are as few slots as work, and each layer reads its experts anew. ``io_threads`` is the
    depth of the disk queue, of each drive's where there are several; None measures which is best
    for the first, for half a second at most, unless ``device_cache``, the file in which
    measurements are kept, knows this disk; None keeps them nowhere. ``store_dirs`` are
    directories beside the store's own that hold parts or copies of it (what ``flashmoe spread``
    writes); all are read at once. ``profile`` keeps beside the
    store how often each expert is chosen, and at the next start reads the likeliest ones ahead,
    while the disk is idle.
    """

    threads: int | None = None
    chunk_tokens: int | None = None
    hints: bool = True
    io: Io = "direct"
    io_threads: int | None = None
    device_cache: Path | None = None
    profile: bool = True
    store_dirs: tuple[str | Path, ...] = ()

    def __post_init__(self) -> None:
        if self.threads is not None:
            _whole("threads", self.threads, f"from 1 to {MAX_THREADS}", 1, MAX_THREADS)
        if self.chunk_tokens is not None:
            _whole("chunk_tokens", self.chunk_tokens, "at least 1", 1)
        if self.io_threads is not None:
            _whole("io_threads", self.io_threads, "from 1 to 64", 1, MAX_IO_THREADS)
        known = self.device_cache is None or isinstance(self.device_cache, Path)
        _check(known, "device_cache", self.device_cache, "the path of a file, or None")
        _flag("hints", self.hints)
        _check(self.io in get_args(Io), "io", self.io, f"one of {', '.join(get_args(Io))}")
        _flag("profile", self.profile)
        places = isinstance(self.store_dirs, tuple) and all(
            isinstance(place, str | Path) and str(place) for place in self.store_dirs
        )
        _check(places, "store_dirs", self.store_dirs, "a tuple of directories")

    @property
    def resolved_threads(self) -> int:
        """The number of threads that compute, chosen or not."""
        if self.threads is not None:
            return self.threads
        if hasattr(os, "sched_getaffinity"):  # cpusets and taskset take processors away
            return min(len(os.sched_getaffinity(0)), MAX_THREADS)
        return min(os.cpu_count() or 1, MAX_THREADS)


@dataclass(frozen=True)
class PrefixCache:
    """Where the state after the beginnings of timelines is kept, so that none is computed twice.

    ``directory`` keeps it across restarts, for this user alone, since it says what was said; None
    keeps it in memory only. ``disk_bytes`` bounds all files in it, those of other models and
    processes included; what was used longest ago leaves. ``memory_bytes`` is what is held in
    memory, which the budget counts; None is enough for what waits to be written to the directory.

    A timeline that resumes inside an earlier prompt gives the bits that it would have given
    anyway. One that resumes at the end of an earlier prompt or reply gives those of the session
    that would have gone on there, which may differ by rounding from all in one.
    """

    directory: Path | None = None
    disk_bytes: int = DEFAULT_DISK_BYTES
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        known = self.directory is None or isinstance(self.directory, Path)
        _check(known, "directory", self.directory, "the path of a directory, or None")
        _whole("disk_bytes", self.disk_bytes, "at least 1", 1)
        if self.memory_bytes is not None:
            _whole("memory_bytes", self.memory_bytes, "at least 1", 1)
        placed = self.directory is not None or self.memory_bytes is not None
        _check(placed, "memory_bytes", None, "a number of bytes where there is no directory")


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the logits.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch those filters
    off. ``repetition_penalty`` divides or multiplies the logits of every token seen in prompt
    and reply (transformers' meaning); ``presence_penalty`` and ``frequency_penalty`` count the
    reply alone (OpenAI's meaning). ``logprobs`` asks for that many alternatives a token
    (0: the chosen one only; None: none). A store's own generation_config replaces the
    temperature, top_p and top_k below through :meth:`flashmoe.Engine.sampling`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _real("temperature", self.temperature, "from 0 to 100", 0, 100)
        _real("top_p", self.top_p, "above 0 and at most 1", _TINY, 1)
        _whole("top_k", self.top_k, "0 (off) or more", 0)
        _real("min_p", self.min_p, "from 0 to 1", 0, 1)
        _real("repetition_penalty", self.repetition_penalty, "from 0.01 to 100", 0.01, 100)
        for name in ("presence_penalty", "frequency_penalty"):
            _real(name, getattr(self, name), "from -100 to 100", -100, 100)
        if self.seed is not None:
            _check(type(self.seed) is int, "seed", self.seed, "a whole number")
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, "at least 1", 1)
        strings = isinstance(self.stop, tuple) and all(
            isinstance(text, str) and text for text in self.stop
        )
        _check(strings, "stop", self.stop, "a tuple of non-empty strings")
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, "from 0 to 100", 0, 100)


def or_defaults(
    budget: Budget | None, runtime: Runtime | None, prefix_cache: PrefixCache | None
) -> tuple[Budget, Runtime]:
    """Those given, or the defaults in their place.

    Raises:
        InputError: one is of another kind.
    """
    budget = Budget() if budget is None else budget
    runtime = Runtime() if runtime is None else runtime
    check_types(budget=(budget, Budget), runtime=(runtime, Runtime))
    check_types(prefix_cache=(prefix_cache, (PrefixCache, type(None))))
    return budget, runtime
