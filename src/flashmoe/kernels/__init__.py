"""Arithmetic: the kernels, behind a table that is chosen once, at start.

``reference`` is numpy, in float32 or float64; ``cpu`` is the native module, in float32; ``cuda`` is
an NVIDIA GPU, in float32, and ``cuda:1`` the second one.
"""

from __future__ import annotations

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels import reference
from flashmoe.kernels.cuda.device import Device
from flashmoe.kernels.table import Kernels
from flashmoe.options import Runtime, check_types

DTYPES = ("float32", "float64")
NAMES = ("auto", "cpu", "reference", "cuda")


def choose(name: str | Kernels, dtype: str, threads: int | None = None) -> Kernels:
    """The table called ``name`` for activations of ``dtype``; a table stands for itself.

    ``auto`` is the fastest set that computes in this dtype. ``threads`` None is the default of
    :class:`flashmoe.options.Runtime`.

    Raises:
        InputError: an unknown name or dtype, a pair that does not exist, or absurd ``threads``.
        DeviceError: the GPU asked for is not there.
    """
    if isinstance(name, Kernels):
        return name
    check_types(kernels=(name, (str, Kernels)))
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not known; choose one of {DTYPES}")
    name, _, number = checked(name).partition(":")
    if name == "auto":
        name = "cpu" if dtype == "float32" else "reference"
    if name == "reference":
        return Kernels("reference", np.dtype(dtype), reference.block_bytes(np.dtype(dtype)))
    if dtype != "float32":
        raise InputError(f"the {name} kernels compute in float32; use the reference for {dtype}")
    if name == "cuda":
        from flashmoe.kernels.cuda.gpu import Gpu

        return on_device(Gpu(int(number or 0)))
    from flashmoe.kernels import cpu  # the reference must work where the native module does not

    return cpu.table(Runtime(threads=threads).resolved_threads)


def checked(name: str) -> str:
    """The same name, if a table goes by it; asks for no GPU.

    Raises:
        InputError: none does.
    """
    kind, colon, number = name.partition(":")
    if kind not in NAMES or (
        colon and (kind != "cuda" or not (number.isascii() and number.isdecimal()))
    ):
        raise InputError(
            f"kernels {name!r} are not known; choose one of {', '.join(NAMES)}, or cuda:1 for the "
            "second GPU"
        )
    return name


def on_gpu(name: str) -> bool:
    """Whether the table of this name computes on a GPU."""
    return checked(name).partition(":")[0] == "cuda"


def on_device(device: Device) -> Kernels:
    """The table of a model whose layers run on ``device``."""
    return Kernels("cuda", np.dtype(np.float32), 0, device.name, device)


__all__ = ["DTYPES", "NAMES", "Kernels", "checked", "choose", "on_device", "on_gpu"]
