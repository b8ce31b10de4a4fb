"""One NVIDIA GPU, by CuPy: memory, compilation, launches, captured graphs.

Owns every use of CuPy, which is imported when a GPU is opened and not before. All work goes to one
stream of its own, in the order of the calls; nothing assumes the first GPU or the caller's current
one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from flashmoe.errors import BudgetError, DeviceError
from flashmoe.kernels.cuda.device import Argument, DeviceArray
from flashmoe.quant import Array

OLDEST = (7, 5)
"""Compute capability that the kernels' instructions want: Turing (GeForce 16 and 20) and later."""


class Gpu:
    """The GPU of this number, as the driver counts.

    Raises:
        DeviceError: there is no such GPU, it is too old, or CuPy is not installed.
    """

    def __init__(self, number: int = 0) -> None:
        self._cupy = cupy = _cupy()
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceError(
                f"no NVIDIA GPU can be used ({error}): check that nvidia-smi lists one, or run "
                "with --kernels cpu"
            ) from error
        if not 0 <= number < count:
            raise DeviceError(f"there is no GPU {number}: this machine has {count}, from 0 on")
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
        with self._device:
            self._stream = cupy.cuda.Stream(non_blocking=True)
        self._kernels: dict[tuple[str, str], Any] = {}
        self._modules: dict[str, Any] = {}
        self._compiling = threading.Lock()

    @contextmanager
    def _here(self) -> Iterator[None]:
        """CuPy's own calls on this GPU and stream, and its errors as ours."""
        cupy = self._cupy
        errors = cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError
        try:
            with self._device, self._stream:
                yield
        except cupy.cuda.memory.OutOfMemoryError as error:
            free, total = self.memory()
            raise BudgetError(
                f"{self.name} has no memory for that ({free:,} of {total:,} bytes are free): give "
                "a smaller --vram, or end what else uses the GPU"
            ) from error
        except errors as error:
            raise DeviceError(f"{self.name} reports: {error}") from error

    def memory(self) -> tuple[int, int]:
        """Bytes that are free for anyone, and bytes in all."""
        with self._device:
            free, total = self._cupy.cuda.runtime.memGetInfo()
        return int(free), int(total)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Memory that holds anything. Raises BudgetError where there is none."""
        with self._here():
            return self._cupy.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """The same, zeroed."""
        with self._here():
            return self._cupy.zeros(shape, dtype)

    def upload(self, array: Array) -> DeviceArray:
        """A copy of a numpy array."""
        with self._here():
            return self._cupy.asarray(array)

    def download(self, array: DeviceArray) -> Array:
        """A copy as numpy array, when all before has been done."""
        with self._here():
            return np.asarray(array.get())

    def address(self, array: DeviceArray) -> int:
        """Where it begins."""
        return int(array.data.ptr)

    def synchronize(self) -> None:
        """Wait until all before has been done.

        Raises:
            DeviceError: something of it failed.
        """
        with self._here():
            self._stream.synchronize()

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
        given = tuple(np.uint64(0) if each is None else each for each in arguments)
        with self._here():
            if shared_bytes > function.max_dynamic_shared_size_bytes:
                function.max_dynamic_shared_size_bytes = shared_bytes
            function(grid, (threads, 1, 1), given, shared_mem=shared_bytes)

    def _compiled(self, source: str, kernel: str) -> Any:
        cupy, where = self._cupy, Path(str(resources.files(__package__))) / "source"
        with self._compiling, self._here():
            if source not in self._modules:
                text = (where / f"{source}.cu").read_text(encoding="utf-8")
                # CuPy keeps what it has compiled by the text it was given: the headers are in it.
                headers = [path.read_text(encoding="utf-8") for path in sorted(where.glob("*.cuh"))]
                text += "\n//".join(["", *"\n".join(headers).splitlines()])
                options = ("--std=c++17", f"-I{where}")
                self._modules[source] = cupy.RawModule(code=text, options=options)
            try:
                function = self._modules[source].get_function(kernel)
            except cupy.cuda.compiler.CompileException as error:
                raise DeviceError(
                    f"{source}.cu cannot be compiled for {self.name}: {error}"
                ) from error
        self._kernels[source, kernel] = function
        return function

    def captured(self, work: Callable[[], None]) -> Graph:
        """What ``work`` launches, to be launched again as one. Kernels must be compiled by then
        (run ``work`` once before), and their arguments must live as long as the graph."""
        with self._here():
            self._stream.begin_capture()
            try:
                work()
            finally:
                graph = self._stream.end_capture()
        return Graph(self, graph)

    def time_ms(self, work: Callable[[], None]) -> float:
        """What the GPU takes for what ``work`` launches."""
        begin, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        with self._here():
            begin.record(self._stream)
            work()
            end.record(self._stream)
            end.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(begin, end))


class Graph:
    """Launches captured once (:meth:`Gpu.captured`)."""

    def __init__(self, gpu: Gpu, graph: Any) -> None:
        self._gpu, self._graph = gpu, graph

    def launch(self) -> None:
        """All of them again, in their order."""
        with self._gpu._here():
            self._graph.launch(self._gpu._stream)


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            "the GPU's kernels need CuPy: pip install 'flash-moe[cuda]', or run with --kernels cpu"
        ) from error
    return cupy


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
