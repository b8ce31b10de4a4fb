"""The trunk in the device's memory, a tensor when a layer asks for it.

Owns the way from the store's tensors to the device; what is on the device is kept once, whoever
asks (a tied head has the embedding's own matrix).
"""

from __future__ import annotations

from flashmoe.kernels.cuda.descriptors import Resident, resident
from flashmoe.kernels.cuda.device import Device, DeviceArray
from flashmoe.model.trunk import Trunk


class Weights:
    """What ``trunk`` has, by the same names, on ``device``."""

    def __init__(self, trunk: Trunk, device: Device) -> None:
        self.trunk, self._device = trunk, device
        self._kept: dict[str, Resident] = {}
        self._norms: dict[str, DeviceArray] = {}

    def matrix(self, name: str, rows: int, columns: int) -> Resident:
        """As :meth:`flashmoe.model.trunk.Trunk.matrix`."""
        if name not in self._kept:
            self._kept[name] = resident(self._device, self.trunk.matrix(name, rows, columns))
        return self._kept[name]

    def norm(self, name: str, width: int, offset: int) -> DeviceArray:
        """As :meth:`flashmoe.model.trunk.Trunk.norm`."""
        if name not in self._norms:
            self._norms[name] = self._device.upload(self.trunk.norm(name, width, offset))
        return self._norms[name]

    def expert(self, name: str, hidden: int, width: int) -> tuple[Resident, ...]:
        """Gate, up and down of a resident expert."""
        shapes = (width, hidden), (width, hidden), (hidden, width)
        names = ("gate_proj", "up_proj", "down_proj")
        return tuple(
            self.matrix(f"{name}.{part}", *shape) for part, shape in zip(names, shapes, strict=True)
        )
