"""Launches that may begin while the one before them ends: Hopper's programmatic dependent launch.

Owns the driver's call and its structures, which CuPy has no word for. A kernel launched so must
call ``preceding_done`` (source/machine.cuh) before it touches what others write; the time from one
kernel's end to the next one's first instruction, about a microsecond, is then hidden.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from flashmoe.errors import DeviceError
from flashmoe.kernels.cuda.device import Argument

OLDEST = (9, 0)
"""Compute capability that has it."""

SOURCES = frozenset(
    {"decode", "experts", "delta", "attention"}
    | {f"attention_{form}" for form in ("f32", "f16", "bf16", "int8")}
)
"""Whose kernels all call ``preceding_done``."""

PROGRAMMATIC_STREAM_SERIALIZATION = 6


class _Attribute(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class _Config(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


class Overlap:
    """The driver's call.

    Raises:
        DeviceError: there is no driver that has it.
    """

    def __init__(self) -> None:
        try:
            self._call = ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx
        except (OSError, AttributeError) as error:
            raise DeviceError(f"NVIDIA's driver cannot be called: {error}") from error
        self._attribute = _Attribute(PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1, b"")

    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        stream: int,
        arguments: tuple[Argument, ...],
    ) -> None:
        """Launch the driver's ``function`` on its ``stream``.

        Raises:
            DeviceError: the driver refuses.
        """
        values = [ctypes.create_string_buffer(_bytes(each)) for each in arguments]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        config = _Config(
            (ctypes.c_uint * 3)(*grid),
            (ctypes.c_uint * 3)(threads, 1, 1),
            shared_bytes,
            stream,
            ctypes.pointer(self._attribute),
            1,
        )
        function_, none = ctypes.c_void_p(function), ctypes.c_void_p()
        status = self._call(ctypes.byref(config), function_, pointers, none)
        if status:
            raise DeviceError(f"NVIDIA's driver refuses a launch: its error {status}")


def _bytes(argument: Any) -> bytes:
    """An argument as the kernel takes it: null, addresses, numbers and structures."""
    if argument is None:
        return bytes(8)
    if isinstance(argument, np.ndarray):
        return int(argument.ctypes.data).to_bytes(8, "little")
    if isinstance(argument, np.generic):
        return argument.tobytes()
    return int(argument.data.ptr).to_bytes(8, "little")
