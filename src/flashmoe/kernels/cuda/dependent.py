"""Launches whose blocks may begin while the kernel before them ends ("programmatic dependent
launch"), by the driver's own call: CuPy has none for it.

Owns that call's structures. Whether a kernel may be launched so is the caller's to know: it waits
for the one before it by itself.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import numpy as np

from flashmoe.errors import DeviceError
from flashmoe.kernels.cuda.device import Argument

STREAM_SERIALIZATION = 6
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, an attribute that is on or off."""

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = [
        ("id", ctypes.c_int),
        ("unused", ctypes.c_int),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_int * 15),
    ]


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    ]


class Dependent:
    """The driver's call. Raises DeviceError where there is none."""

    def __init__(self) -> None:
        try:
            self._call = ctypes.CDLL(LIBRARY).cuLaunchKernelEx
        except (OSError, AttributeError) as error:
            raise DeviceError(f"the GPU's driver cannot be called: {error}") from error

    def __call__(
        self,
        function: int,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        stream: int,
        arguments: Sequence[Argument],
    ) -> None:
        """Launch the driver's ``function`` behind a kernel in ``stream``, both by their handles.

        Raises:
            DeviceError: the driver refuses.
        """
        values = [ctypes.create_string_buffer(_bytes(argument)) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        attribute = _Attribute(STREAM_SERIALIZATION, 0, 1)
        config = _Config(
            (ctypes.c_uint * 3)(*grid),
            (ctypes.c_uint * 3)(threads, 1, 1),
            shared_bytes,
            stream,
            ctypes.pointer(attribute),
            1,
        )
        code = self._call(ctypes.byref(config), ctypes.c_void_p(function), pointers, None)
        if code:
            raise DeviceError(f"the GPU's driver refuses a launch with error {code}")


def _bytes(argument: Argument) -> bytes:
    """A kernel's parameter as it lies in memory: an address, or a number or structure itself."""
    if argument is None:
        return bytes(8)
    if isinstance(argument, np.generic):
        return argument.tobytes()
    host = isinstance(argument, np.ndarray)
    address = argument.ctypes.data if host else int(argument.data.ptr)
    return address.to_bytes(8, sys.byteorder)
