"""How far a prompt is: what a host is told while its tokens pass.

Owns the record and how it is computed; who calls it, and when a prompt ends early, is
``session``'s. Invariant: what is told never shrinks, begins with what was there already and, where
nothing goes wrong, ends with all tokens done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from flashmoe.errors import CancelledError


@dataclass(frozen=True)
class Progress:
    """A prompt on its way through the model.

    ``total_tokens`` are those that the call has to pass: the ids given and, where the timeline
    ended with a generated token, that one. ``cached_tokens`` of them were known from an earlier
    timeline and count as done. Inside a chunk ``done_tokens`` is fractional: a chunk of T tokens
    that has passed l of L layers counts for T · l / L. ``elapsed`` are the seconds since the call
    began, a wait for the passes of other sessions included; ``tokens_per_second`` is what has
    passed since over them, cached tokens left out, 0 until the first layer is done;
    ``seconds_left`` is what is left at that rate, None until then.
    """

    done_tokens: float
    total_tokens: int
    cached_tokens: int
    elapsed: float

    @property
    def tokens_per_second(self) -> float:
        """The mean since the call began: it moves least where layers take turns being slow."""
        passed = self.done_tokens - self.cached_tokens
        return passed / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """What is left at that rate."""
        left, rate = self.total_tokens - self.done_tokens, self.tokens_per_second
        if left <= 0:
            return 0.0
        return left / rate if rate else None


OnProgress: TypeAlias = Callable[[Progress], object]
"""What a host gives to be told; called in the thread that runs the prompt, a layer waits for it."""


class Journey:
    """One prompt of ``total_tokens`` through ``layers`` layers; tells ``told``, if it is there.

    Raises:
        CancelledError: from every method, where ``told`` raised.
    """

    def __init__(
        self, total_tokens: int, layers: int, told: OnProgress | None, cached_tokens: int = 0
    ) -> None:
        self._total = total_tokens
        self._layers = layers
        self._told = told
        self._cached = self._passed = cached_tokens
        self._began = time.perf_counter()

    def begin(self) -> None:
        """Nothing but what was cached is done."""
        self._tell(0.0)

    def layer(self, tokens: int, layers_done: int) -> None:
        """A chunk of ``tokens`` has passed so many layers, but not all; 0 are no news."""
        if layers_done:
            self._tell(tokens * layers_done / self._layers)

    def chunk(self, tokens: int) -> None:
        """A chunk has passed all layers, and its tokens belong to the timeline."""
        self._passed += tokens
        self._tell(0.0)

    def _tell(self, more: float) -> None:
        if self._told is None:
            return
        elapsed = time.perf_counter() - self._began
        try:
            self._told(Progress(self._passed + more, self._total, self._cached, elapsed))
        except CancelledError:
            raise
        except Exception as error:
            raise CancelledError(f"on_progress has ended the prompt: {error!r}") from error
