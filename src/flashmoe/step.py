"""One token and its cost: what the footer, the usage figures and the bench all read.

Owns the record and its totals, so that no two faces can disagree on a number.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from flashmoe.sampler import Choice
from flashmoe.stream.counters import Counters
from flashmoe.stream.direct import busy_ms

Finish: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True)
class Step:
    """A generated token, the text that it completes, and what it cost.

    ``logprob`` and ``top_logprobs`` (id, logprob) are there where the sampling asks for them.
    ``text`` may be empty (half a character, the start of a stop string, a stop token) and never
    ends inside a character. ``prompt_tokens`` passed before this token: the prompt at the first
    step, 0 later; ``cached_tokens`` of the timeline did not pass but came from the prefix cache,
    to whose directory ``bytes_written`` were given since the step before. ``hits`` and ``misses``
    count distinct experts a layer and chunk; ``bytes_read`` came from disk; ``ms_read_wait`` of
    ``ms_total`` were spent waiting for them, ``ms_python`` neither in native code nor waiting.
    Where a GPU computes, these count what was not in its memory: ``vram_hits`` and ``vram_misses``
    count the experts that were there and those that had to be copied, ``copied_bytes`` in all, for
    which ``ms_copy_wait`` were spent waiting. ``ms_python`` has the wait for the GPU in it then.
    """

    id: int
    text: str
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]
    finish_reason: Finish | None
    prompt_tokens: int
    hits: int
    misses: int
    bytes_read: int
    ms_read_wait: float
    ms_total: float
    ms_python: float = 0.0
    cached_tokens: int = 0
    bytes_written: int = 0
    vram_hits: int = 0
    vram_misses: int = 0
    copied_bytes: int = 0
    ms_copy_wait: float = 0.0

    @property
    def ms_compute(self) -> float:
        """Time not spent waiting for reads and copies."""
        return self.ms_total - self.ms_read_wait - self.ms_copy_wait


@dataclass(frozen=True)
class Totals:
    """The sum over the steps of one reply. Rates are 0 where nothing was measured."""

    prompt_tokens: int
    tokens: int
    hits: int
    misses: int
    bytes_read: int
    ms_read_wait: float
    ms_first: float
    ms_decode: float
    decode_bytes_read: int
    decode_ms_python: float = 0.0
    cached_tokens: int = 0
    bytes_written: int = 0
    vram_hits: int = 0
    vram_misses: int = 0
    copied_bytes: int = 0
    ms_copy_wait: float = 0.0
    decode_copied_bytes: int = 0

    @staticmethod
    def of(steps: Iterable[Step]) -> Totals:
        """Add up the steps of one reply, in order."""
        steps = list(steps)
        rest = steps[1:]
        return Totals(
            prompt_tokens=sum(step.prompt_tokens for step in steps),
            tokens=len(steps),
            hits=sum(step.hits for step in steps),
            misses=sum(step.misses for step in steps),
            bytes_read=sum(step.bytes_read for step in steps),
            ms_read_wait=sum(step.ms_read_wait for step in steps),
            ms_first=steps[0].ms_total if steps else 0.0,
            ms_decode=sum(step.ms_total for step in rest),
            decode_bytes_read=sum(step.bytes_read for step in rest),
            decode_ms_python=sum(step.ms_python for step in rest),
            cached_tokens=sum(step.cached_tokens for step in steps),
            bytes_written=sum(step.bytes_written for step in steps),
            vram_hits=sum(step.vram_hits for step in steps),
            vram_misses=sum(step.vram_misses for step in steps),
            copied_bytes=sum(step.copied_bytes for step in steps),
            ms_copy_wait=sum(step.ms_copy_wait for step in steps),
            decode_copied_bytes=sum(step.copied_bytes for step in rest),
        )

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens after the first over their time."""
        return 1e3 * (self.tokens - 1) / self.ms_decode if self.ms_decode else 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prompt speed, the first token's own sampling included; what was cached did not pass."""
        passed = max(self.prompt_tokens - self.cached_tokens, 0)
        return 1e3 * passed / self.ms_first if self.ms_first else 0.0

    @property
    def bytes_per_token(self) -> float:
        """Bytes read for each token after the first."""
        return self.decode_bytes_read / (self.tokens - 1) if self.tokens > 1 else 0.0

    @property
    def copied_bytes_per_token(self) -> float:
        """Bytes copied to a GPU for each token after the first."""
        return self.decode_copied_bytes / (self.tokens - 1) if self.tokens > 1 else 0.0

    @property
    def vram_hit_rate(self) -> float:
        """Share of the experts asked for that were in VRAM."""
        asked = self.vram_hits + self.vram_misses
        return self.vram_hits / asked if asked else 0.0

    @property
    def python_share(self) -> float:
        """Share of the time after the first token that is neither native work nor waiting."""
        return self.decode_ms_python / self.ms_decode if self.ms_decode else 0.0

    @property
    def hit_rate(self) -> float:
        """Share of the experts asked for that were in memory."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


def step_of(
    choice: Choice,
    text: str,
    finish: Finish | None,
    prompt_tokens: int,
    kept_apart: tuple[int, int],
    cost: list[Counters],
    began: float,
    busy: float,
) -> Step:
    """The step that ends now: ``kept_apart`` are tokens that came from the prefix cache and bytes
    that went there, ``cost`` that of each pass; it began at ``began`` (``perf_counter``), when
    native code had been ``busy`` for so many ms."""
    total = (time.perf_counter() - began) * 1e3
    return Step(
        id=choice.id,
        text=text,
        logprob=choice.logprob,
        top_logprobs=choice.top,
        finish_reason=finish,
        prompt_tokens=prompt_tokens,
        hits=sum(spent.hits for spent in cost),
        misses=sum(spent.misses for spent in cost),
        bytes_read=sum(spent.bytes_read for spent in cost),
        ms_read_wait=sum(spent.wait_ms for spent in cost),
        ms_total=total,
        ms_python=max(total - (busy_ms() - busy), 0.0),
        cached_tokens=kept_apart[0],
        bytes_written=kept_apart[1],
        vram_hits=sum(spent.vram_hits for spent in cost),
        vram_misses=sum(spent.vram_misses for spent in cost),
        copied_bytes=sum(spent.copied_bytes for spent in cost),
        ms_copy_wait=sum(spent.copy_wait_ms for spent in cost),
    )
