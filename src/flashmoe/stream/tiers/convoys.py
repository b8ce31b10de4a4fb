"""A chunk's copies from RAM to the device, several experts at a time: the device waits for them.

Owns which are under way, and the records that are lent for them. Does not own the slots that they
go to, nor the order in which they are begun (``sweep``).

A *convoy* is passed once what the device is given from then on begins behind it (``Mover.gate``):
its experts are in the table from then on, in that order. Its records may be read over only when it
has landed, but where they are lent, in which case nobody has to wait for that.

Invariant: an expert of a convoy that is neither passed nor landed is not in the table; one whose
copy has failed leaves the table when it lands, and lands before its sweep ends.
"""

from __future__ import annotations

import time
from collections import deque

from flashmoe.errors import DeviceError
from flashmoe.stream.counters import Counters
from flashmoe.stream.lending import Lending
from flashmoe.stream.tiers.mover import Mover
from flashmoe.stream.tiers.table import Table

TOGETHER = 32
"""Experts of a convoy at most: the device can begin with the first while others are copied."""


class _Convoy:
    """Experts with their slots, copied under one ticket, and those whose records are lent."""

    def __init__(self, ticket: int, places: dict[int, int], lent: list[int]) -> None:
        self.ticket, self.places, self.lent = ticket, places, lent
        self.passed = False


class Convoys:
    """Of one layer, through ``mover``; their records are lent if ``lends``, unless they are
    ``held``."""

    def __init__(
        self,
        layer: int,
        mover: Mover,
        table: Table,
        lending: Lending,
        counters: Counters,
        *,
        lends: bool,
    ) -> None:
        self.held = False
        """Whether a hold that ends behind them keeps all records where they are."""
        self._layer, self._lends = layer, lends
        self._mover, self._table, self._lending = mover, table, lending
        self._counters = counters
        self._under_way: deque[_Convoy] = deque()
        self.lost: list[int] = []
        """Experts whose copies have failed."""

    def __bool__(self) -> bool:
        return bool(self._under_way)

    @property
    def lasting(self) -> bool:
        """Whether nothing that is copied can be read over before it has landed."""
        lent = (len(convoy.lent) == len(convoy.places) for convoy in self._under_way)
        return self.held or all(lent)

    def start(self, places: dict[int, int]) -> None:
        """Copy experts, which the streamer has yielded, to their slots.

        Raises:
            DeviceError: the device refuses.
        """
        experts = list(places)
        memory, starts, nbytes = self._lending.spans(self._layer, experts)
        ticket = self._mover.copy(list(places.values()), memory, starts, nbytes)
        lent = self._lending.lend(self._layer, experts) if self._lends and not self.held else []
        self._under_way.append(_Convoy(ticket, places, lent))
        self._counters.copied_bytes += nbytes * len(places)

    def start_all(self, places: dict[int, int]) -> None:
        """:meth:`start` any number, some together."""
        copied = list(places.items())
        for first in range(0, len(copied), TOGETHER):
            self.start(dict(copied[first : first + TOGETHER]))

    def adopt(self, others: Convoys) -> None:
        """What others have begun of the same layer goes on here, ahead of all else."""
        self._under_way.extendleft(reversed(others._under_way))
        others._under_way.clear()

    def passing(self, last: int) -> None:
        """The device is about to be given experts up to ``last``: it waits for their copies."""
        for convoy in self._under_way:
            if not convoy.passed and min(convoy.places) <= last:
                self._mover.gate(convoy.ticket)
                convoy.passed = True
                self._enter(convoy)

    def _enter(self, convoy: _Convoy) -> None:
        self._table.put_all(self._layer, convoy.places)

    def land(self, *, passed: bool = False, all_of_them: bool = False) -> None:
        """Take those that have ended, the oldest first; wait for those that are passed, or for all.

        Raises:
            DeviceError: the first of those that failed, when they have all been taken. Their
                experts are not in the table.
        """
        failed = None
        began = time.perf_counter()
        while self._under_way:
            convoy = self._under_way[0]
            waits = all_of_them or (passed and convoy.passed)
            if not waits and not self._mover.done(convoy.ticket):
                break
            self._under_way.popleft()
            try:
                self._mover.wait(convoy.ticket)
            except DeviceError as error:
                failed = failed or error
                self._lose(convoy)
            else:
                if not convoy.passed:
                    self._enter(convoy)
            self._lending.take_back_all(self._layer, convoy.lent)
        self._counters.copy_wait_ms += (time.perf_counter() - began) * 1e3
        if failed is not None:
            raise failed

    def _lose(self, convoy: _Convoy) -> None:
        self.lost += convoy.places
        for expert, slot in convoy.places.items():
            if self._table.slot((self._layer, expert)) == slot:
                self._table.withdraw((self._layer, expert))
