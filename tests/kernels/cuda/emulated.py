"""A GPU for tests where there is none: the kernels' own sources, compiled for the processor."""

import ctypes
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import threading
from contextlib import nullcontext
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

SOURCES = Path(str(resources.files("flashmoe.kernels.cuda"))) / "source"
KERNEL = re.compile(r"^KERNEL(?:_TOGETHER)?\([^)]*\)\s+(\w+)\(", re.MULTILINE)
BUILT = Path(__file__).parents[3] / "build" / "emulated"


class EmulatedDevice:
    """Arrays are numpy's; launches take effect at once."""

    name = "emulated"
    shared_bytes = 99 << 10

    def __init__(self, processors=3) -> None:
        self.processors = processors
        self.free_bytes = 1 << 33
        self.launches: list[str] = []
        self._recorded: list | None = None
        self._beside: list[list] = []
        self._thread: threading.Thread | None = None

    def memory(self):
        return self.free_bytes, 1 << 34

    def kept(self):
        return nullcontext()

    def release(self):
        pass

    def empty(self, shape, dtype):
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = 0xAA  # so that what nobody writes shows
        return array

    def zeros(self, shape, dtype):
        return np.zeros(shape, dtype)

    def upload(self, array):
        copied = np.empty(array.nbytes + 128, np.uint8)
        start = -copied.ctypes.data % 64  # as a GPU's allocations are
        copied[start : start + array.nbytes] = (
            np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        )
        return copied[start : start + array.nbytes].view(array.dtype).reshape(array.shape)

    def write(self, target, array):
        self.synchronize()
        target[...] = array

    def download(self, array):
        self.synchronize()
        return np.array(array)

    def pinned(self, shape, dtype):
        return np.zeros(shape, dtype)

    def arena(self, nbytes):
        array = self.upload(np.full(nbytes + 4096, 0xAA, np.uint8))
        start = -array.ctypes.data % 4096
        return array[start : start + nbytes]

    def mover(self, arena, slot_bytes):
        return EmulatedMover(arena, slot_bytes)

    def pin(self, array):
        pass

    def unpin(self, array):
        pass

    def host_address(self, array):
        return array.ctypes.data

    def captured(self, work):
        self._recorded, self._beside = [], []
        try:
            work()
            assert not any(self._beside), "something is beside the graph for ever"
            return EmulatedGraph(self, self._recorded)
        finally:
            self._recorded = None

    def beside(self, work):
        """It happens when it must have happened, the latest moment there is."""
        outside, self._recorded = self._recorded, []
        try:
            work()
        finally:
            inside, self._recorded = self._recorded, outside
        self._beside.append(inside)

        def end():
            for earlier in self._beside[: 1 + next_of(self._beside, inside)]:
                outside.extend(earlier)
                earlier.clear()

        return end

    def mark(self):
        return self

    def wait(self):
        self.synchronize()

    def synchronize(self):
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def memory_rate(self):
        return 3e12

    def copy_rate(self):
        return 5e10

    def busy(self):
        return self._thread is not None and self._thread.is_alive()

    def run(self, launches):
        """Launches one after the other, in the background."""
        self.synchronize()
        self._thread = threading.Thread(target=lambda: [each() for each in launches])
        self._thread.start()

    def fetch(self, target, array):
        self._enqueue(lambda: np.copyto(target, array))

    def _enqueue(self, work):
        if self._recorded is not None:
            self._recorded.append(work)
        else:
            self.synchronize()
            work()

    def address(self, array):
        return array.ctypes.data

    def launch(self, source, kernel, grid, threads, *arguments, shared_bytes=0):
        assert shared_bytes <= self.shared_bytes
        values = [_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(each) for each in values))
        function = getattr(library(source), f"launch_{kernel}")
        numbers = (ctypes.c_uint * 3)(*grid), threads, ctypes.c_size_t(shared_bytes)

        def launch(kept=(arguments, values)):  # which the pointers are of
            self.launches.append(kernel)
            function(*numbers, pointers)

        self._enqueue(launch)


def next_of(lists, one):
    return next(number for number, each in enumerate(lists) if each is one)


class EmulatedGraph:
    def __init__(self, device, launches):
        self._device, self._launches = device, launches

    def launch(self):
        self._device.run(self._launches)


class EmulatedMover:
    """Copies happen when host or launches wait for them, the latest moment there is."""

    def __init__(self, arena, slot_bytes):
        self._arena, self._slot_bytes = arena, slot_bytes
        self._waiting = {}
        self._tickets = itertools.count()

    def copy(self, slots, memory, starts, nbytes):
        ticket = next(self._tickets)
        self._waiting[ticket] = [
            (slot * self._slot_bytes, memory[start : start + nbytes])
            for slot, start in zip(slots, starts, strict=True)
        ]
        return ticket

    def fetch(self, slot, record):
        for ticket in list(self._waiting):  # in order
            self._move(ticket)
        start = slot * self._slot_bytes
        record[...] = self._arena[start : start + len(record)]
        ticket = next(self._tickets)
        self._waiting[ticket] = []
        return ticket

    def done(self, ticket):
        return False

    def wait(self, ticket):
        self._move(ticket)
        del self._waiting[ticket]

    def _move(self, ticket):
        waiting, self._waiting[ticket] = self._waiting[ticket], []
        for start, record in waiting:
            self._arena[start : start + len(record)] = record

    def gate(self, ticket):
        self._move(ticket)

    def fence(self):
        pass

    def drain(self):
        for ticket in list(self._waiting):
            self.wait(ticket)


def _value(argument):
    match argument:
        case None:
            return ctypes.c_void_p(0)
        case np.ndarray():
            assert argument.flags.c_contiguous
            return ctypes.c_void_p(argument.ctypes.data)
        case np.void():
            return ctypes.create_string_buffer(argument.tobytes())
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
    headers = [*sorted(SOURCES.glob("*.cuh")), *sorted(Path(__file__).parent.glob("*.h"))]
    made_of = hashlib.sha256(text.encode() + b"".join(map(Path.read_bytes, headers))).hexdigest()
    built = BUILT / f"{source}-{made_of[:16]}.so"
    if not built.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        launches = "".join(f"EMULATED_LAUNCH({kernel})\n" for kernel in KERNEL.findall(text))
        program = f'#include "{SOURCES / source}.cu"\n{launches}'
        compiler = os.environ.get("CXX") or shutil.which("c++") or "c++"
        flags = ["-std=c++20", "-O2", "-fPIC", "-shared", "-ffp-contract=off"]
        defines = ["-DFLASHMOE_EMULATED", "-I", str(Path(__file__).parent), "-I", str(SOURCES)]
        unfinished = built.with_suffix(f".{os.getpid()}")
        command = [compiler, *flags, *defines, "-x", "c++", "-", "-o", str(unfinished)]
        done = subprocess.run(command, input=program, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        unfinished.rename(built)
    return ctypes.CDLL(str(built))
