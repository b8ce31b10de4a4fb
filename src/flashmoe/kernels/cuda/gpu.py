"""One NVIDIA GPU, by CuPy: memory, compilation, launches, captured graphs.

Owns every use of CuPy, which is imported when a GPU is opened and not before. All work goes to one
stream of its own, in the order of the calls; nothing assumes the first GPU or the caller's current
one.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from flashmoe.errors import BudgetError, DeviceError
from flashmoe.kernels.cuda.device import Argument, DeviceArray
from flashmoe.kernels.cuda.mover import Mover
from flashmoe.quant import Array

OLDEST = (8, 0)
"""Compute capability that the kernels' instructions want: Ampere (GeForce 30) and later."""

HOST_REGISTER_MAPPED = 2
"""cudaHostRegisterMapped, for which CuPy has no name."""

SURE_BYTES = 48 << 10
"""Shared memory of any launch, with what its kernel has of its own; one that wants more must be
allowed to, once."""

RATE_BYTES, RATE_ROUNDS = 256 << 20, 7
"""Copied to measure a rate, several times what any cache holds, and how often."""


class Gpu:
    """The GPU of this number, as the driver counts.

    Raises:
        DeviceError: there is no such GPU, it is too old, or CuPy is not installed.
    """

    def __init__(self, number: int = 0) -> None:
        self._cupy = cupy = _cupy()
        try:
            there = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceError(
                f"no NVIDIA GPU can be used ({error}): check that nvidia-smi lists one, or run "
                "with --kernels cpu"
            ) from error
        if not 0 <= number < there:
            raise DeviceError(f"there is no GPU {number}: this machine has {there}, from 0 on")
        self.number = number
        self._device = cupy.cuda.Device(number)
        found = cupy.cuda.runtime.getDeviceProperties(number)
        self.name = str(found["name"].decode())
        self.capability = (int(found["major"]), int(found["minor"]))
        if self.capability < OLDEST:
            raise DeviceError(
                f"{self.name} has compute capability {_dotted(self.capability)}; the kernels want "
                f"{_dotted(OLDEST)}: run with --kernels cpu"
            )
        self.processors = int(found["multiProcessorCount"])
        self.shared_bytes = int(found["sharedMemPerBlockOptin"])
        try:
            with self._device:
                self._stream = cupy.cuda.Stream(non_blocking=True)
                self._recorder, self._side = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceError(f"{self.name} cannot be used: {error}") from error
        self._joints: list[Any] = []  # events between the streams of a capture
        self._own = threading.local()  # the stream of a thread that records a graph
        self._kernels: dict[tuple[str, str], Any] = {}
        self._allowed: dict[tuple[str, str], int] = {}  # bytes of shared memory
        self._modules: dict[str, Any] = {}
        self._compiling = threading.Lock()

    @contextmanager
    def here(self) -> Iterator[None]:
        """CuPy's own calls on this GPU and stream, and its errors as ours."""
        cupy = self._cupy
        errors = cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError
        try:
            if getattr(self._own, "kept", None) is self._current:
                yield
            else:
                with self._device, self._current:
                    yield
        except cupy.cuda.memory.OutOfMemoryError as error:
            free, total = self.memory()
            raise BudgetError(
                f"{self.name} has no memory for that ({free:,} of {total:,} bytes are free): give "
                "a smaller --vram, or end what else uses the GPU"
            ) from error
        except errors as error:
            raise DeviceError(f"{self.name} reports: {error}") from error

    @contextmanager
    def kept(self) -> Iterator[None]:
        """This GPU and stream for all calls of a block, which need not ask for them one by one."""
        self._own.kept = None  # whatever an interrupt has left: who is here asks once more
        with self.here():
            try:
                self._own.kept = self._current
                yield
            finally:
                self._own.kept = None

    @property
    def _current(self) -> Any:
        return getattr(self._own, "stream", self._stream)

    def memory(self) -> tuple[int, int]:
        """Bytes that are free for anyone, and bytes in all."""
        with self._device:
            free, total = self._cupy.cuda.runtime.memGetInfo()
        return int(free), int(total)

    def release(self) -> None:
        """Give back what arrays that are gone have left."""
        with self.here():
            self._cupy.get_default_memory_pool().free_all_blocks()
            self._cupy.get_default_pinned_memory_pool().free_all_blocks()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Memory that holds anything. Raises BudgetError where there is none."""
        with self.here():
            return self._cupy.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """The same, zeroed."""
        with self.here():
            return self._cupy.zeros(shape, dtype)

    def upload(self, array: Array) -> DeviceArray:
        """A copy of a numpy array."""
        with self.here():
            return self._cupy.asarray(array)

    def write(self, target: DeviceArray, array: Array) -> None:
        """Overwrite an array, or a part of one, with numpy's of the same shape and type."""
        with self.here():
            target[...] = self._cupy.asarray(array)

    def download(self, array: DeviceArray) -> Array:
        """A copy as numpy array, when all before has been done."""
        with self.here():
            return np.asarray(array.get())

    def fetch(self, target: Array, array: DeviceArray) -> None:
        """Copy to memory of :meth:`pinned`, as a launch does: not waited for, and captured."""
        runtime = self._cupy.cuda.runtime
        with self.here():
            places = target.ctypes.data, self.address(array), array.nbytes
            runtime.memcpyAsync(*places, runtime.memcpyDeviceToHost, self._current.ptr)

    def address(self, array: DeviceArray) -> int:
        """Where it begins."""
        return int(array.data.ptr)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Zeroed memory of the host that the device reads and writes too, at the same address."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with self.here():
            memory = self._cupy.cuda.alloc_pinned_memory(nbytes)
        array = np.frombuffer(memory, dtype, count=int(np.prod(shape))).reshape(shape)
        array[...] = 0
        return array

    def arena(self, nbytes: int) -> DeviceArray:
        """Memory for slots, bytes that begin at a multiple of 4,096, outside of any pool."""
        cupy = self._cupy
        with self.here():
            memory = cupy.cuda.memory.Memory(nbytes)
        return cupy.ndarray((nbytes,), np.uint8, cupy.cuda.MemoryPointer(memory, 0))

    def mover(self, arena: DeviceArray, slot_bytes: int) -> Mover:
        """Copies of records into slots of an arena, beside the launches."""
        return Mover(self, self._cupy, arena, slot_bytes)

    def pin(self, array: Array) -> None:
        """Have memory of the host stay where it is, so that copies from it need no other, and
        kernels can read it."""
        runtime = self._cupy.cuda.runtime
        with self.here():
            runtime.hostRegister(array.ctypes.data, array.nbytes, HOST_REGISTER_MAPPED)

    def unpin(self, array: Array) -> None:
        """The end of that."""
        with self.here():
            self._cupy.cuda.runtime.hostUnregister(array.ctypes.data)

    def host_address(self, array: Array) -> int:
        """Where a pinned array begins, as kernels see it."""
        with self.here():
            found = self._cupy.cuda.runtime.pointerGetAttributes(array.ctypes.data)
        return int(found.devicePointer)

    def mark(self) -> Mark:
        """The point that all before has led to."""
        return Mark(self, self.event())

    def event(self) -> Any:
        """CuPy's event of the same."""
        with self.here():
            return self._stream.record(self._cupy.cuda.Event(disable_timing=True))

    def follow(self, event: Any) -> None:
        """All from now on begins after CuPy's event of another stream."""
        with self.here():
            self._stream.wait_event(event)

    def synchronize(self) -> None:
        """Wait until all before has been done.

        Raises:
            DeviceError: something of it failed.
        """
        with self.here():
            self._stream.synchronize()

    def busy(self) -> bool:
        """Whether something of it is still to be done; raises as :meth:`synchronize`."""
        with self.here():
            return not self._stream.done

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
        function = self._kernels.get((source, kernel)) or self._compiled(source, kernel)
        given = tuple(map(_given, arguments))
        with self.here():
            if shared_bytes > self._allowed.get((source, kernel), 0):
                if shared_bytes + function.shared_size_bytes > SURE_BYTES:
                    function.max_dynamic_shared_size_bytes = shared_bytes
                self._allowed[source, kernel] = shared_bytes
            function(grid, (threads, 1, 1), given, shared_mem=shared_bytes)

    def _compiled(self, source: str, kernel: str) -> Any:
        cupy, where = self._cupy, Path(str(resources.files(__package__))) / "source"
        with self._compiling, self.here():
            if source not in self._modules:
                text = (where / f"{source}.cu").read_text(encoding="utf-8")
                # CuPy keeps what it has compiled by the text it was given: the headers are in it.
                headers = [path.read_text(encoding="utf-8") for path in sorted(where.glob("*.cuh"))]
                text += "\n//".join(["", *"\n".join(headers).splitlines()])
                options = ("--std=c++17", f"-I{where}")
                self._modules[source] = cupy.RawModule(code=text, options=options)
            try:
                function = self._modules[source].get_function(kernel)
            except (
                cupy.cuda.compiler.CompileException,
                ImportError,
                OSError,
                RuntimeError,
            ) as error:
                raise DeviceError(
                    f"{source}.cu cannot be compiled for {self.name} ({error}): NVIDIA's run-time "
                    "compiler comes with 'cupy-cuda13x[ctk]', or with the CUDA toolkit"
                ) from error
        self._kernels[source, kernel] = function
        return function

    def captured(self, work: Callable[[], None]) -> Graph:
        """What ``work`` launches, to be launched again as one. Kernels must be compiled by then
        (run ``work`` once before), and their arguments must live as long as the graph."""
        self._own.stream = self._recorder  # what other threads give the GPU is no part of it
        try:
            with self.here():
                self._recorder.begin_capture()
                try:
                    work()
                except BaseException:
                    with suppress(self._cupy.cuda.runtime.CUDARuntimeError):
                        self._recorder.end_capture()
                    raise
                graph = self._recorder.end_capture()
        finally:
            self._joints.clear()
            del self._own.stream
        return Graph(self, graph)

    def beside(self, work: Callable[[], None]) -> Callable[[], None]:
        """What ``work`` launches, inside :meth:`captured`, begins behind all before and goes on
        beside what is launched next, until what comes back is called."""
        recorder, side = self._current, self._side
        self._follow(side, self._joint(recorder))
        self._own.stream = side
        try:
            work()
        finally:
            self._own.stream = recorder
        return partial(self._follow, recorder, self._joint(side))

    def _joint(self, stream: Any) -> Any:
        """The point that a stream of a capture has come to, which lives as long as that."""
        with self.here():
            self._joints.append(stream.record(self._cupy.cuda.Event(disable_timing=True)))
        return self._joints[-1]

    def _follow(self, stream: Any, joint: Any) -> None:
        """What a stream is given from now on begins behind that point."""
        with self.here():
            stream.wait_event(joint)

    def memory_rate(self) -> float:
        """Bytes a second that a copy within its memory reads and writes, the median of a few."""
        source, target = (self.empty((RATE_BYTES,), np.uint8) for _ in range(2))
        kind = self._cupy.cuda.runtime.memcpyDeviceToDevice
        return 2 * self._rate(target, self.address(source), kind)

    def copy_rate(self) -> float:
        """Bytes a second of copies from pinned memory of the host, the median of a few."""
        source, target = self.pinned((RATE_BYTES,), np.uint8), self.empty((RATE_BYTES,), np.uint8)
        kind = self._cupy.cuda.runtime.memcpyHostToDevice
        return self._rate(target, source.ctypes.data, kind)

    def _rate(self, target: DeviceArray, source: int, kind: int) -> float:
        """Bytes a second of copies of this kind from an address; the first one is not timed."""
        runtime, stream, place = self._cupy.cuda.runtime, self._stream.ptr, self.address(target)

        def copy() -> None:
            runtime.memcpyAsync(place, source, target.nbytes, kind, stream)

        _, *times = [self.time_ms(copy) for _ in range(1 + RATE_ROUNDS)]
        return float(target.nbytes / statistics.median(times) * 1e3)

    def time_ms(self, work: Callable[[], None]) -> float:
        """What the GPU takes for what ``work`` launches."""
        with self.here():
            begin, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
            begin.record(self._stream)
            work()
            end.record(self._stream)
            end.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(begin, end))


class Mark:
    """A point in what the GPU was given to do (:meth:`Gpu.mark`)."""

    def __init__(self, gpu: Gpu, event: Any) -> None:
        self._gpu, self._event = gpu, event

    def wait(self) -> None:
        """Wait until the device is past it."""
        with self._gpu.here():
            self._event.synchronize()


class Graph:
    """Launches captured once (:meth:`Gpu.captured`)."""

    def __init__(self, gpu: Gpu, graph: Any) -> None:
        self._gpu, self._graph = gpu, graph

    def launch(self) -> None:
        """All of them again, in their order."""
        with self._gpu.here():
            self._graph.launch(self._gpu._stream)


def _cupy() -> Any:
    try:
        import cupy
    except ModuleNotFoundError as error:
        raise DeviceError(
            "the GPU's kernels need CuPy: pip install 'cupy-cuda13x[ctk]>=14,<15' (cupy-cuda12x "
            "for a driver of CUDA 12), or run with --kernels cpu"
        ) from error
    except ImportError as error:
        raise DeviceError(f"CuPy is installed and cannot be loaded: {error}") from error
    return cupy


def _given(argument: Argument) -> Any:
    """As CuPy passes it: null and the host's arrays by address."""
    if argument is None:
        return np.uint64(0)
    return np.uint64(argument.ctypes.data) if isinstance(argument, np.ndarray) else argument


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
