"""The choice of instruction set on older processors, as qemu imitates them.

An instruction that the imitated processor lacks ends the process with SIGILL.
"""

import platform
import shutil
import subprocess
import sys

import pytest

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")

PROGRAM = """
import numpy as np
from flashmoe import _native
rng = np.random.default_rng(0)
x = rng.standard_normal((5, 192), dtype=np.float32)
scales = rng.standard_normal((9, 3), dtype=np.float32)
print(*_native.instruction_sets())
for bits in (2, 3, 4, 5, 6, 8):
    weight = rng.integers(0, 1 << 32, (9, 6 * bits), np.uint32)
    y = np.zeros((5, 9), np.float32)
    _native.matmul_affine(x, weight, scales, scales, bits, 64, 0, y, 2, "NAME")
    print(y.tobytes().hex())
    rows = np.zeros(5 * 9, np.float32)
    matrix = _native.Matrix((weight, scales, scales, bits, 64, 0), 192)
    _native.project(x, [matrix], rows, 2, "NAME", True)
    print(rows.tobytes().hex())
"""


def run(*command: str, name: str) -> list[str]:
    program = PROGRAM.replace("NAME", name)
    done = subprocess.run([*command, sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="imitates x86-64 processors")
@pytest.mark.skipif(QEMU is None, reason="qemu is missing: apt-get install qemu-user-static")
@pytest.mark.parametrize(
    ("processor", "sets"), [("SandyBridge", ["generic"]), ("Haswell", ["avx2", "generic"])]
)
def test_an_older_processor(processor: str, sets: list[str]) -> None:
    assert QEMU is not None
    first, *products = run(QEMU, "-cpu", processor, name=sets[0])
    assert first.split() == sets
    if sets[0] in run(name="generic")[0].split():
        assert products == run(name=sets[0])[1:]  # the same bits as on this processor
