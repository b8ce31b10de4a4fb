"""Where the device tells the host what its router chose, and waits for an answer if it must.

Owns the letters, one a layer, in the host's pinned memory, and the step's own numbers (``Letter``
in source/experts.cu, ``lookup`` in source/decode.cu). Does not own who is in which slot.

Every pass has a number of its own, so that nothing has to be cleared between two: a letter is
*asked* once it bears the number, and *answered* with the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from flashmoe.kernels.cuda.device import Device, DeviceArray
from flashmoe.quant import Array

LETTER = np.dtype(
    [
        ("ids", "<i4", 32),
        ("slots", "<i4", 32),
        ("asked", "<i4"),
        ("answered", "<i4"),
        ("unused", "<i4", 14),
    ]
)

PATIENCE_S = 0.25
"""So long a letter is waited for before somebody looks whether the device has failed."""

SPIN_S = 200e-6
"""And so long without letting others run: longer than a layer whose experts are all there."""

LAST = (1 << 30) - 1
"""The highest number of a pass: twice that, and one, is an int32."""


class Mailbox:
    """Of a model of so many layers."""

    def __init__(self, device: Device, layers: int) -> None:
        self._device = device
        self._letters = device.pinned((layers,), LETTER)
        self._asked, self._answered = self._letters["asked"], self._letters["answered"]
        self.given = device.pinned((3,), np.int32)
        """Token, position and number of the pass: what ``Embedding`` takes."""
        self.inputs: DeviceArray = device.zeros((3,), np.int32)
        """The same, on the device."""

    @property
    def step(self) -> int:
        """The number of the latest pass."""
        return int(self.given[2])

    def letter(self, layer: int) -> Array:
        """One layer's, as ``decode.route`` takes it."""
        return self._letters[layer : layer + 1]

    def begin(self, token: int, position: int) -> None:
        """Number another pass. The one before has ended."""
        step = self.step + 1 if self.step < LAST else 1
        self.given[:] = token, position, step

    def asked(self, layer: int, top_k: int) -> tuple[Array, bool]:
        """Wait for the layer's ids (top_k,), and whether the device waits for their slots.

        Raises:
            DeviceError: the device has failed.
        """
        step, asked = 2 * self.step, self._asked
        began = time.perf_counter()
        until = began + PATIENCE_S
        while asked[layer] >> 1 != step >> 1:
            now = time.perf_counter()
            if now > began + SPIN_S:
                time.sleep(0)  # others may want the interpreter; comes back 50 us later
            if now > until:
                if not self._device.busy() and asked[layer] >> 1 != step >> 1:
                    raise RuntimeError(f"the pass has ended and never asked for layer {layer}")
                until = time.perf_counter() + PATIENCE_S
        ids = self._letters["ids"][layer, :top_k].astype(np.int64)
        return ids, bool(asked[layer] & 1)

    def ids(self, top_k: int) -> Array:
        """The ids (layers, top_k) of a pass that has asked for its last layer's."""
        return self._letters["ids"][:, :top_k].astype(np.int64)

    def answer(self, layer: int, slots: Array) -> None:
        """Tell the device the slots (top_k,) of what it asked for; it goes on."""
        self._letters["slots"][layer, : len(slots)] = slots
        self._answered[layer] = self.step

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
