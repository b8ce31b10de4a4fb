"""A GPU for tests where there is none: the kernels' own sources, compiled for the processor."""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

SOURCES = Path(str(resources.files("flashmoe.kernels.cuda"))) / "source"
KERNEL = re.compile(r"^KERNEL\([^)]*\)\s+(\w+)\(", re.MULTILINE)
BUILT = Path(__file__).parents[3] / "build" / "emulated"


class EmulatedDevice:
    """Arrays are numpy's; launches take effect at once."""

    name = "emulated"

    def __init__(self) -> None:
        self.launches: list[str] = []

    def empty(self, shape, dtype):
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = 0xAA  # so that what nobody writes shows
        return array

    def zeros(self, shape, dtype):
        return np.zeros(shape, dtype)

    def upload(self, array):
        copied = np.empty(array.nbytes + 64, np.uint8)
        start = -copied.ctypes.data % 64  # as a GPU's allocations are
        copied[start : start + array.nbytes] = (
            np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        )
        return copied[start : start + array.nbytes].view(array.dtype).reshape(array.shape)

    def download(self, array):
        return np.array(array)

    def address(self, array):
        return array.ctypes.data

    def launch(self, source, kernel, grid, threads, *arguments, shared_bytes=0):
        self.launches.append(kernel)
        values = [_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(each) for each in values))
        function = getattr(library(source), f"launch_{kernel}")
        function((ctypes.c_uint * 3)(*grid), threads, ctypes.c_size_t(shared_bytes), pointers)


def _value(argument):
    match argument:
        case None:
            return ctypes.c_void_p(0)
        case np.ndarray():
            assert argument.flags.c_contiguous
            return ctypes.c_void_p(argument.ctypes.data)
        case np.generic():
            return _number(argument)
    raise TypeError(f"a kernel takes arrays and numpy's numbers, not {type(argument)}")


def _number(number):
    kinds = {"i4": ctypes.c_int32, "i8": ctypes.c_int64, "f4": ctypes.c_float}
    return kinds[number.dtype.str[1:]](number.item())


@cache
def library(source: str) -> ctypes.CDLL:
    """The kernels of ``source``.cu, compiled; kept by what they were made of."""
    text = (SOURCES / f"{source}.cu").read_text()
    headers = [*sorted(SOURCES.glob("*.cuh")), Path(__file__).with_name("emulator.h")]
    made_of = hashlib.sha256(text.encode() + b"".join(map(Path.read_bytes, headers))).hexdigest()
    built = BUILT / f"{source}-{made_of[:16]}.so"
    if not built.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        launches = "".join(f"EMULATED_LAUNCH({kernel})\n" for kernel in KERNEL.findall(text))
        program = f'#include "{SOURCES / source}.cu"\n{launches}'
        compiler = os.environ.get("CXX") or shutil.which("c++") or "c++"
        flags = ["-std=c++20", "-O1", "-g", "-fPIC", "-shared", "-ffp-contract=off"]
        defines = ["-DFLASHMOE_EMULATED", "-I", str(Path(__file__).parent), "-I", str(SOURCES)]
        unfinished = built.with_suffix(f".{os.getpid()}")
        command = [compiler, *flags, *defines, "-x", "c++", "-", "-o", str(unfinished)]
        done = subprocess.run(command, input=program, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        unfinished.rename(built)
    return ctypes.CDLL(str(built))
