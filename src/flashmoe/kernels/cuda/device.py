"""What the launchers want of a GPU, so that they can be tested without one.

Owns the interface, and the check of what goes through it. ``gpu`` is the real one; tests
have another, which runs the same sources on the processor.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np

from flashmoe.quant import Array

DeviceArray: TypeAlias = Any
"""An array in the device's memory, with numpy's face: shape, dtype, slices, assignment."""

Argument: TypeAlias = DeviceArray | np.generic | None
"""What a kernel takes: an array (its address), a number of the parameter's type, None for null."""


class Device(Protocol):
    """Memory and launches of one GPU. Launches and copies take effect in the order of the calls."""

    @property
    def name(self) -> str:
        """As its maker calls it."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Memory that holds anything. Raises BudgetError where there is none."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """The same, zeroed."""
        ...

    def upload(self, array: Array) -> DeviceArray:
        """A copy of a numpy array."""
        ...

    def download(self, array: DeviceArray) -> Array:
        """A copy as numpy array, when all before has been done."""
        ...

    def address(self, array: DeviceArray) -> int:
        """Where it begins."""
        ...

    def launch(
        self,
        source: str,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        *arguments: Argument,
        shared_bytes: int = 0,
    ) -> None:
        """Run a kernel of ``source``.cu: ``grid`` blocks of ``threads``.

        Raises:
            DeviceError: the GPU reports an error, of this or an earlier launch.
        """
        ...


def check(name: str, array: DeviceArray, shape: tuple[int, ...]) -> None:
    """Kernels trust what they are given: a shape that is not ``shape`` is a ValueError here."""
    if array.shape != shape:
        raise ValueError(f"{name} of shape {array.shape} do not fit; {shape} is wanted")
