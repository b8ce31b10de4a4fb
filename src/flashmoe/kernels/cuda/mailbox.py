"""What device and host tell each other while a token passes the layers.

Owns the letters, one a layer, the slots on offer and the step's own numbers, all in the host's
pinned memory (``Letter`` and ``Offers`` in source/experts.cu, ``lookup`` in source/decode.cu). Does
not own who is in which slot, nor which slots are offered.

Every pass has a number of its own, so that nothing has to be cleared between two: a letter is
*asked* once it bears the number. A device that misses something has taken slots for it, and waits
in the layer itself until it knows from where in RAM to bring it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flashmoe.kernels.cuda.decode import INPUTS, MOST_EARLY, Early, Post
from flashmoe.kernels.cuda.device import Device, DeviceArray
from flashmoe.quant import Array

MOST = 32
"""Experts in a letter at most."""

LETTER = np.dtype(
    [
        ("ids", "<i4", MOST),
        ("slots", "<i4", MOST),
        ("sources", "<i4", MOST),
        ("asked", "<i4"),
        ("answered", "<i4"),
        ("early", "<i4", MOST_EARLY),
        ("early_slots", "<i4", MOST_EARLY),
        ("unused", "<i4", 6),
    ]
)
THERE, ASKED = -1, -2
"""In place of a source: nothing has to be brought; the host is to say from where."""

OFFERS = 1024
"""Places of the ring of slots on offer."""

PATIENCE_S = 0.25
"""So long a letter is waited for before somebody looks whether the device has failed."""

SPIN_S = 200e-6
"""And so long without letting others run: longer than a layer whose experts are all there."""

LAST = (1 << 30) - 1
"""The highest number of a pass: twice that, and one, is an int32."""


@dataclass(frozen=True)
class Asked:
    """A layer's letter: ids, and for each of them its slot and its source; and the slots that were
    given to experts before the router chose, by expert, in the order in which they were taken."""

    ids: Array
    slots: Array
    sources: Array
    early: dict[int, int]


class Mailbox:
    """Of a model of so many layers."""

    def __init__(self, device: Device, layers: int) -> None:
        self._device = device
        self._letters = device.pinned((layers,), LETTER)
        self._letters["early"] = -1
        names = "ids", "slots", "sources", "early", "early_slots"
        self._parts = [[self._letters[name][layer] for name in names] for layer in range(layers)]
        self._asked, self._answered = self._letters["asked"], self._letters["answered"]
        self.offers: Array = device.pinned((16 + OFFERS,), np.uint32)
        """How many slots were ever offered, and from the sixteenth number on the last of them."""
        self.given = device.pinned((INPUTS,), np.int32)
        """Token, position and number of the pass, slots taken and offered before it: what
        ``Embedding`` takes."""
        self.inputs: DeviceArray = device.zeros((INPUTS,), np.int32)
        """The same, on the device."""

    @property
    def step(self) -> int:
        """The number of the latest pass."""
        return int(self.given[2])

    def post(self, layer: int, records: Array | None = None, early: Early | None = None) -> Post:
        """One layer's, as ``decode.route`` takes it; ``records`` (experts,) if the device is to
        find experts in RAM by itself, ``early`` if some of them before the router has chosen."""
        return Post(self._letters[layer : layer + 1], self.offers, self.inputs, records, early)

    def begin(self, token: int, position: int, taken: int = 0) -> None:
        """Number another pass, before which ``taken`` slots of all those offered were taken. The
        one before has ended; or, where two interrupts in a row have kept anybody from giving it up,
        ends now, since this one is to come behind it."""
        self.give_up()
        step = self.step + 1 if self.step < LAST else 1
        self.given[:3] = token, position, step
        self.given[3:].view(np.uint32)[:] = taken, self.offers[0], taken

    def asked(self, layer: int, top_k: int, beside: Callable[[], None] = lambda: None) -> Asked:
        """Wait for the layer's letter, of ``top_k`` experts, and do what may be done ``beside``,
        over and over.

        Raises:
            DeviceError: the device has failed.
        """
        step, asked = self.step, self._asked
        began = time.perf_counter()
        until = began + PATIENCE_S
        while asked[layer] >> 1 != step:
            beside()
            now = time.perf_counter()
            if now > began + SPIN_S:
                time.sleep(0)  # others may want the interpreter; comes back 50 us later
            if now > until:
                if not self._device.busy() and asked[layer] >> 1 != step:
                    raise RuntimeError(f"the pass has ended and never asked for layer {layer}")
                until = time.perf_counter() + PATIENCE_S
        *chosen, experts, places = self._parts[layer]
        pairs = zip(experts.tolist(), places.tolist(), strict=True)
        early = {expert: slot for expert, slot in pairs if expert >= 0}
        ids, slots, sources = (part[:top_k].astype(np.int64) for part in chosen)
        return Asked(ids, slots, sources, early)

    def answer(self, layer: int, place: int, source: int) -> None:
        """Tell the device where in RAM the expert in this place of the letter is. It stays there
        until the device has asked for the next layer, or the pass has ended."""
        self._letters["sources"][layer, place] = source

    def give_up(self) -> None:
        """Let the pass run to its end without answers; what it computes is worth nothing."""
        self._answered[:] = -self.step

    def wait(self, work: Callable[[], None]) -> None:
        """Run ``work``, the host's side of a pass; where it fails, the pass is given up, and has
        ended before the error goes on."""
        try:
            work()
        except BaseException:
            self.give_up()
            self._device.synchronize()
            raise
