"""What a caller can choose: the only home of a default.

Owns three frozen dataclasses for running a model (a conversion resolves its own options, in
``store.plan``). Command-line flags, request fields and documentation read their
defaults from here and nowhere else. Anything that changes the answer says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashmoe.errors import InputError

DEFAULT_CONTEXT_TOKENS = 4096
"""The longest timeline planned for where the caller names none."""


def _check(ok: bool, name: str, value: object, wanted: str) -> None:
    if not ok:
        raise InputError(f"{name} is {value!r}; it must be {wanted}")


@dataclass(frozen=True)
class Budget:
    """Memory that the engine may use, and the context it is planned for.

    ``ram_bytes`` bounds the peak resident memory of the whole process; None takes what
    ``stream.budget`` recommends for this machine. ``context_tokens`` is the longest timeline;
    None takes :data:`DEFAULT_CONTEXT_TOKENS`, or the model's own limit where
    that is smaller. ``slots`` pins the number of
    expert slots instead of filling the budget (it is still refused when it does not fit).
    """

    ram_bytes: int | None = None
    context_tokens: int | None = None
    slots: int | None = None

    def __post_init__(self) -> None:
        for name in ("ram_bytes", "context_tokens", "slots"):
            value = getattr(self, name)
            _check(value is None or value > 0, name, value, "a positive number")


@dataclass(frozen=True)
class Runtime:
    """How the work is done. Nothing here changes a single bit of the answer.

    ``chunk_tokens`` prompt tokens pass a layer together. ``hints`` starts expert reads as soon
    as the router has chosen, before the shared expert is computed. ``direct_io`` bypasses the
    page cache where the file system allows it. ``io_threads`` is the depth of the disk queue.
    """

    threads: int | None = None
    chunk_tokens: int = 128
    hints: bool = True
    direct_io: bool = True
    io_threads: int = 4

    def __post_init__(self) -> None:
        _check(self.threads is None or self.threads > 0, "threads", self.threads, "at least 1")
        _check(self.chunk_tokens > 0, "chunk_tokens", self.chunk_tokens, "at least 1")
        _check(0 < self.io_threads <= 64, "io_threads", self.io_threads, "from 1 to 64")


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
        _check(0 <= self.temperature <= 100, "temperature", self.temperature, "from 0 to 100")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _check(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 to 1")
        penalty = self.repetition_penalty
        _check(0 < penalty <= 100, "repetition_penalty", penalty, "above 0 and at most 100")
        for name in ("presence_penalty", "frequency_penalty"):
            _check(abs(getattr(self, name)) <= 100, name, getattr(self, name), "from -100 to 100")
        tokens = self.max_tokens
        _check(tokens is None or tokens > 0, "max_tokens", tokens, "at least 1")
        _check(all(self.stop), "stop", self.stop, "a list of non-empty strings")
        wanted = self.logprobs
        _check(wanted is None or 0 <= wanted <= 100, "logprobs", wanted, "from 0 to 100")
