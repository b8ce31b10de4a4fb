"""A timeline whose keys, values and recurrent state are in the device's memory.

Owns the arrays there, and when they and those of the host (``model.state``) agree: passes write the
device's; snapshots and the prefix cache read and write the host's. Each side is brought up to date
when it is looked at, so a timeline that nobody keeps is never copied.

Invariant: at most one side is ahead of the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flashmoe.kernels.cuda import attention
from flashmoe.kernels.cuda.delta import DeltaState
from flashmoe.kernels.cuda.device import Device
from flashmoe.kernels.kv import KeyValues
from flashmoe.model.state import LayerState, Mark, RecurrentState, State
from flashmoe.quant import Array
from flashmoe.shape import ModelShape


class GpuState(State):
    """As :class:`flashmoe.model.state.State`; ``turn`` says which of two recurrent sets is
    current."""

    def __init__(
        self, shape: ModelShape, context_tokens: int, dtype: np.dtype[Any], kv: str, device: Device
    ) -> None:
        self._device = device
        self._device_ahead = self._host_ahead = False
        self._same_tokens = 0  # of keys and values, on both sides
        self.turn = 0
        super().__init__(shape, context_tokens, dtype, kv)
        self.kept: list[attention.KeyValues | None] = []
        """Of attention layers: the arrays of ``KeyValues.whole``, by name."""
        self.recurrent: list[tuple[DeltaState, DeltaState] | None] = []
        """Of the other layers: both sets."""
        for layer in self._layers:
            if isinstance(layer, KeyValues):
                heads, context, width = layer.whole["keys"].shape
                kept = attention.key_values(device, kv, (heads, context, width))
                self.kept.append(kept)
                self.recurrent.append(None)
            else:
                self.kept.append(None)
                self.recurrent.append((_zeros(device, layer), _zeros(device, layer)))

    @property
    def layers(self) -> list[LayerState]:
        """The host's side, up to date, for whoever reads or writes it."""
        self._pull()
        return self._layers

    @layers.setter
    def layers(self, layers: list[LayerState]) -> None:
        self._layers = layers

    def of_layer(
        self, index: int, turn: int
    ) -> attention.KeyValues | tuple[DeltaState, DeltaState]:
        """What a pass reads and writes of a layer: keys and values, or the set that is current in
        this turn and the other one."""
        kept, recurrent = self.kept[index], self.recurrent[index]
        if kept is not None:
            return kept
        assert recurrent is not None
        return recurrent[turn], recurrent[1 - turn]

    def begin(self) -> None:
        """A pass is about to read the device's side, and to write it."""
        if self._host_ahead:
            self._push()

    def moved(self, last: Array, tokens: int = 1) -> None:
        """So many have passed; ``last`` (1, hidden) is the hidden state of the last."""
        self.turn = 1 - self.turn
        self.position += tokens
        self.last = last
        self._device_ahead = True

    def written(self) -> None:
        """The host's side has been written: it is the one that counts."""
        self._host_ahead, self._same_tokens = True, 0

    def clear(self) -> None:
        """Forget every token."""
        super().clear()
        self.written()

    def mark(self) -> Mark:
        """As in ``State``: a pass writes the other of two sets, so the turn is enough."""
        return self.position, self.last, [self.turn]

    def rewind(self, mark: Mark) -> None:
        """Undo the one pass that there was since, whole or not."""
        self.position, self.last, (self.turn,) = mark
        self._same_tokens = min(self._same_tokens, self.position)

    def _pull(self) -> None:
        if not self._device_ahead:
            return
        fresh = slice(self._same_tokens, self.position)
        for layer, kept, recurrent in zip(self._layers, self.kept, self.recurrent, strict=True):
            if isinstance(layer, KeyValues) and kept is not None:
                layer.length = self.position
                for name, array in layer.whole.items():
                    given = self._device.download(kept.arrays[name][:, fresh])
                    array[:, fresh] = given.view(array.dtype)
            elif isinstance(layer, RecurrentState) and recurrent is not None:
                now = recurrent[self.turn]
                layer.delta[...] = self._device.download(now.delta)
                layer.conv[...] = self._device.download(now.conv)
        self._same_tokens = self.position
        self._device_ahead = False  # not before all of it is there

    def _push(self) -> None:
        fresh = slice(0, self.position)
        for layer, kept, recurrent in zip(self._layers, self.kept, self.recurrent, strict=True):
            if isinstance(layer, KeyValues) and kept is not None:
                for name, array in layer.whole.items():
                    target = kept.arrays[name][:, fresh]
                    self._device.write(target, array[:, fresh].view(target.dtype))
            elif isinstance(layer, RecurrentState) and recurrent is not None:
                now = recurrent[self.turn]
                self._device.write(now.delta, layer.delta)
                self._device.write(now.conv, layer.conv)
        self._same_tokens = self.position
        self._host_ahead = False  # not before all of it is there


def _zeros(device: Device, layer: RecurrentState) -> DeltaState:
    delta, conv = layer.delta, layer.conv
    return DeltaState(device.zeros(delta.shape, delta.dtype), device.zeros(conv.shape, conv.dtype))
