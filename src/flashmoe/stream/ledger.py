"""What is taken of the budget while an engine runs, and how many slots that leaves.

Owns the account and the rule: keys and values of all living timelines, the scratch of the pass at
hand, what is lent out for a while, and the slots together stay within the budget. Does not own the
division at the start (``budget``), the sizes (``sizes``), the slots (``streamer``), or how short
the machine as a whole has become (``pressure``).

Keys and values are counted before they are touched and stay counted while their timeline lives,
also where it is rewound, since touched memory stays. Slots go at once when something needs their
room. They come back after :data:`CALM_PASSES` passes that all left room for more, so that a prompt
between the steps of another timeline costs no experts each time.

Invariant: the slots allowed are never more than what is left of the budget, nor fewer than what
the plan has kept for them beside full timelines and a chunk; those fit at any time.
"""

from __future__ import annotations

from functools import partial
from weakref import WeakKeyDictionary

from flashmoe.errors import BudgetError
from flashmoe.stream import chunks
from flashmoe.stream.budget import Plan
from flashmoe.stream.sizes import Outlay
from flashmoe.stream.units import format_bytes

CALM_PASSES = 4
"""Passes in a row with room for more slots before there are more: a few tokens' wait, against
reading anew what has to leave for the next prompt."""


class Ledger:
    """The account of one engine, for a ``plan`` and the sizes it was made with.

    ``least_slots`` always stay. ``chunk_tokens`` is a size that was asked for, None for a choice.
    Timelines are any objects; one that is gone has given back its memory. ``device_tokens`` is the
    size of a chunk on a device that computes in memory of its own: no pass takes any here.
    """

    def __init__(
        self,
        plan: Plan,
        outlay: Outlay,
        least_slots: int,
        chunk_tokens: int | None,
        device_tokens: int | None = None,
    ) -> None:
        self._plan = plan
        self._outlay = outlay
        self._least = least_slots
        self._chunk_tokens = chunk_tokens
        self._device_tokens = device_tokens
        constant = plan.process_bytes + plan.allowance_bytes + plan.trunk_bytes + plan.state_bytes
        constant += plan.host_bytes + plan.prefix_bytes
        self._room_bytes = plan.budget_bytes - constant
        self._tokens: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._passes = dict[int, int]()  # scratch by tokens: few numbers come again and again
        self._lent_bytes = 0
        self._given_bytes = 0  # of the lent ones, what never comes back
        self._calm = 0

    @property
    def kv_bytes(self) -> int:
        """Keys and values of the living timelines."""
        return sum(map(self._outlay.kv_bytes, self._tokens.values()))

    def charge(self, timeline: object, tokens: int) -> None:
        """A timeline is about to have so many tokens."""
        self._tokens[timeline] = max(tokens, self._tokens.get(timeline, 0))

    def lend(self, nbytes: int) -> None:
        """So many bytes are used for something else; negative once they are free again."""
        self._lent_bytes += nbytes

    def give_away(self, nbytes: int, purpose: str) -> None:
        """So many bytes are used for something else from here on, at the experts' cost.

        Raises BudgetError where full timelines would then leave fewer than the least slots.
        """
        plan = self._plan
        slots = (plan.full_slots - self._least) * plan.slot_bytes
        spare = plan.budget_bytes - plan.planned_bytes + slots - self._given_bytes
        if nbytes > spare:
            raise BudgetError(
                f"{purpose} takes {format_bytes(nbytes)} and the budget of "
                f"{format_bytes(plan.budget_bytes)} has {format_bytes(max(spare, 0))} to spare: "
                "give it more, or a shorter context"
            )
        self._given_bytes += nbytes
        self.lend(nbytes)

    def slots(self, tokens: int) -> int:
        """How many slots there may be beside a pass of so many tokens, of 0 for none."""
        return max(min(self._left(tokens) // self._plan.slot_bytes, self._plan.slots), self._least)

    def settle(self, tokens: int, slots: int) -> int:
        """How many there are to be for a pass of so many tokens, where there are ``slots``."""
        allowed = self.slots(tokens)
        if allowed <= slots:
            self._calm = 0
            return allowed
        self._calm += tokens > 0
        if self._calm < CALM_PASSES:
            return slots
        self._calm = 0
        return allowed

    def chunk(self, timeline: object, position: int, total: int) -> int:
        """How many of a timeline's tokens from ``position`` to ``total`` are to pass next."""
        if total - position == 1:
            return 1
        if self._chunk_tokens is not None:
            return chunks.bordered(position, total, self._chunk_tokens) - position
        if self._device_tokens is not None:
            return chunks.ending(position, total, self._device_tokens) - position
        kept = self._tokens.get(timeline, 0)
        try:
            self.charge(timeline, total)  # what the last chunk will find
            left = self._left(1) + self._scratch(1)
            size = chunks.choose(position, total, partial(self._missing, left))
        finally:
            self._tokens[timeline] = kept
        return chunks.ending(position, total, size) - position

    def _left(self, tokens: int) -> int:
        """Bytes of the budget for slots beside a pass of so many tokens."""
        more = max(len(self._tokens) - self._plan.sessions, 0) * self._outlay.state_bytes
        if not tokens and len(self._tokens) > 1:  # others may be drawing a token
            tokens = 1
        return self._room_bytes - self.kv_bytes - more - self._lent_bytes - self._scratch(tokens)

    def _scratch(self, tokens: int) -> int:
        if not tokens:
            return self._outlay.idle_bytes
        if self._device_tokens is not None:
            tokens = 1
        if tokens not in self._passes:
            self._passes[tokens] = self._outlay.pass_bytes(tokens)
        return self._passes[tokens]

    def _missing(self, left_bytes: int, tokens: int) -> int | None:
        """Experts without a slot beside a pass of so many tokens; None where it does not fit."""
        slots = (left_bytes - self._scratch(tokens)) // self._plan.slot_bytes
        return self._plan.missing(slots, self._least)
