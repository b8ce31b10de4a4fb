"""What was made once for an object, kept for as long as that object lives.

Owns the look-up by identity. Does not own what is kept: it must not refer to its object, or that
would never go.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

Owner = TypeVar("Owner")
Made = TypeVar("Made")


class Handles(Generic[Owner, Made]):
    """``handles(owner)`` is ``make(owner)``, called at most once while ``owner`` lives."""

    def __init__(self, make: Callable[[Owner], Made]) -> None:
        self._make = make
        self._kept: dict[int, tuple[weakref.ref[Owner], Made]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __call__(self, owner: Owner) -> Made:
        kept = self._kept.get(id(owner))
        # Forgotten as the owner goes, before another object can have its identity; but for an
        # interrupt in the midst of forgetting.
        if kept is not None and kept[0]() is owner:
            return kept[1]
        number, made = id(owner), self._make(owner)
        self._kept[number] = weakref.ref(owner, lambda _: self._kept.pop(number, None)), made
        return made
