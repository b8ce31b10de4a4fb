"""A system that interrupts reads and delivers them in pieces: io.cpp goes on until it has all.

pread() is replaced, in a child process, by one that fails with EINTR every second time, reports
only part of what it read, and scribbles over the rest.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

static atomic_int calls;

ssize_t pread(int fd, void *into, size_t size, off_t offset) {
    static ssize_t (*real)(int, void *, size_t, off_t);
    if (!real) real = (ssize_t (*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread");
    if (atomic_fetch_add(&calls, 1) % 2 == 0) { errno = EINTR; return -1; }
    ssize_t got = real(fd, into, size, offset);
    if (got <= PIECE) return got;
    memset((char *)into + PIECE, 0xee, got - PIECE);
    return PIECE;
}
ssize_t pread64(int fd, void *into, size_t size, off_t offset) {
    return pread(fd, into, size, offset);
}
"""

CHILD = """
import mmap, sys
import numpy as np
from flashmoe import _native

data = open(sys.argv[1], "rb").read()
reader = _native.Reader(1)
file = reader.open(sys.argv[1], sys.argv[2] == "direct")
whole = np.frombuffer(mmap.mmap(-1, 16 * 4096), np.uint8)
status = reader.wait(reader.submit(file, 0, whole, _native.xxh3_64(data[:16 * 4096]), True))
assert status == (0, 0), status
short = reader.wait(reader.submit(file, 4096, whole, 0, True))
assert short == (2, len(data) - 4096), short
"""


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is how ELF systems do it")
@pytest.mark.parametrize("mode", ["direct", "plain"])
@pytest.mark.parametrize("piece", [700, 5000, 8192])
def test_interrupted_and_partial_reads(tmp_path: Path, piece: int, mode: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the compiler that built the native module is needed here too"
    if mode == "direct" and piece % 4096:
        piece += 4096 - piece % 4096  # what O_DIRECT delivers before the end of a file
    shim = tmp_path / "shim.so"
    source = tmp_path / "shim.c"
    source.write_text(SHIM)
    flags = ["-shared", "-fPIC", f"-DPIECE={piece}", "-o", str(shim)]
    subprocess.run([compiler, str(source), *flags, "-ldl"], check=True)
    data = tmp_path / "data"
    data.write_bytes(os.urandom(16 * 4096 + 123))
    subprocess.run(
        [sys.executable, "-c", CHILD, str(data), mode],
        check=True,
        timeout=60,
        env={**os.environ, "LD_PRELOAD": str(shim)},
    )
