"""Runs the native code as another processor would: cross-compiled, under qemu-user.

Owns the build of ``driver.cpp`` and the calls to it (the driver says how to add one); knows
nothing of what the results should be. Without the cross compiler or qemu a test that asks for
:func:`driver` is skipped, in CI it fails.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flashmoe.quant import Affine, Matrix

Floats = npt.NDArray[np.float32]

ROOT = Path(__file__).parents[2]
COMPILER = "aarch64-linux-gnu-g++"
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
TYPES = {"F32": 0, "F16": 1, "BF16": 2}


def require_tools() -> None:
    """Skip, or fail in CI, where the cross compiler or qemu is missing."""
    if shutil.which(COMPILER) and QEMU:
        return
    message = (
        f"{COMPILER} or qemu is missing: apt-get install g++-aarch64-linux-gnu qemu-user-static"
    )
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def build() -> Path:
    """The driver for 64-bit ARM, built by the project's own CMakeLists.txt; seconds if stale."""
    import cmake
    import ninja

    folder = ROOT / "build" / "aarch64"
    tool = Path(cmake.CMAKE_BIN_DIR) / "cmake"
    configure: list[str | Path] = [
        tool, "-S", ROOT, "-B", folder, "-G", "Ninja", "-DFLASHMOE_DRIVER=ON",
        f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}", f"-DCMAKE_CXX_COMPILER={COMPILER}",
        "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    ]  # fmt: skip
    make: list[str | Path] = [tool, "--build", folder]
    for command in (configure, make):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "driver"


def raw(array: npt.NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def described(matrix: Matrix) -> str:
    out, columns = matrix.shape
    if isinstance(matrix.form, Affine):
        form = matrix.form
        return f"affine {TYPES[form.scales]} {form.bits} {form.group} {out} {columns}"
    return f"plain {TYPES[matrix.form.dtype]} {out} {columns}"


class Program:
    """Calls gathered by the methods; :meth:`run` makes them in one process on a processor."""

    def __init__(self, driver: Path) -> None:
        self.driver = driver
        self.sent: list[bytes] = []
        self.results: list[np.dtype[Any]] = []

    def add(self, words: str, arrays: Sequence[npt.NDArray[Any]], result: np.dtype[Any]) -> None:
        """One call: its line, its arrays, and what it answers."""
        self.sent += [words.encode() + b"\n", *map(raw, arrays)]
        self.results.append(result)

    def matmul(self, name: str, threads: int, x: Floats, matrix: Matrix) -> None:
        """``x @ matrix.T`` with the instruction set of that name."""
        self.product("matmul", name, threads, x, matrix)

    def panels(self, name: str, threads: int, x: Floats, matrix: Matrix) -> None:
        """The same in the form for many rows."""
        self.product("panels", name, threads, x, matrix)

    def product(self, function: str, name: str, threads: int, x: Floats, matrix: Matrix) -> None:
        words = f"{function} {name} {threads} {len(x)} {described(matrix)}"
        self.add(words, [*matrix.arrays(), x], np.dtype(("<f4", (len(x), matrix.shape[0]))))

    def expert(self, name: str, threads: int, x: Floats, parts: Sequence[Matrix]) -> None:
        """A SwiGLU expert of gate, up and down, for one token's x."""
        words = f"expert {name} {threads} {' '.join(map(described, parts))}"
        arrays = [array for part in parts for array in part.arrays()]
        self.add(words, [*arrays, x], np.dtype(("<f4", x.shape)))

    def checksum(self, data: npt.NDArray[np.uint8]) -> None:
        """XXH3-64."""
        self.add(f"checksum {data.size}", [data], np.dtype("<u8"))

    def touch(self, threads: int, data: npt.NDArray[np.uint8]) -> None:
        """The plain read."""
        self.add(f"touch {threads} {data.size}", [data], np.dtype("<u8"))

    def read(self, path: Path, offset: int, size: int, checksum: int) -> None:
        """A direct read; answers code, detail and bytes."""
        words = f"read {path} {offset} {size} {checksum}"
        self.add(words, [], np.dtype([("code", "<u8"), ("detail", "<u8"), ("data", "u1", size)]))

    def run(self, processor: str) -> list[Any]:
        """Each call's result, in order."""
        assert QEMU is not None
        done = subprocess.run(
            [QEMU, "-cpu", processor, self.driver], input=b"".join(self.sent), capture_output=True
        )
        assert done.returncode == 0, f"exit {done.returncode}: {done.stderr.decode()}"
        answers, rest = [], done.stdout
        for result in self.results:
            answers.append(np.frombuffer(rest[: result.itemsize], result)[0])
            rest = rest[result.itemsize :]
        assert not rest
        return answers


def sets(driver: Path, processor: str) -> list[str]:
    """The instruction sets that the driver finds on that processor."""
    assert QEMU is not None
    done = subprocess.run(
        [QEMU, "-cpu", processor, driver], input=b"sets\n", capture_output=True, check=True
    )
    return done.stdout[8:].decode().split()
