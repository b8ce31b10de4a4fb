"""Arithmetic: the kernels, behind a table that is chosen once, at start.

``reference`` is numpy, in float32 or float64; ``cpu`` is the native module, in float32.
"""

from __future__ import annotations

import numpy as np

from flashmoe.errors import InputError
from flashmoe.kernels import reference
from flashmoe.kernels.table import Kernels
from flashmoe.options import Runtime

DTYPES = ("float32", "float64")
NAMES = ("auto", "cpu", "reference")


def choose(name: str, dtype: str, threads: int | None = None) -> Kernels:
    """The table called ``name`` for activations of ``dtype``.

    ``auto`` is the fastest set that computes in this dtype. ``threads`` None is the default of
    :class:`flashmoe.options.Runtime`.

    Raises:
        InputError: an unknown name or dtype, a pair that does not exist, or absurd ``threads``.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not known; choose one of {DTYPES}")
    if name not in NAMES:
        raise InputError(f"kernels {name!r} are not known; choose one of {NAMES}")
    if name == "auto":
        name = "cpu" if dtype == "float32" else "reference"
    if name == "reference":
        return Kernels("reference", np.dtype(dtype), reference.block_bytes(np.dtype(dtype)))
    if dtype != "float32":
        raise InputError(f"the {name} kernels compute in float32; use the reference for {dtype}")
    from flashmoe.kernels import cpu  # the reference must work where the native module does not

    return cpu.table(Runtime(threads=threads).resolved_threads)


__all__ = ["DTYPES", "NAMES", "Kernels", "choose"]
