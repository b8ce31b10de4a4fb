"""No product reads a byte outside its arrays: each ends where a page that cannot be read begins.

A kernel that oversteps ends the process with SIGSEGV, so the products run in one of their own.
"""

import ctypes
import mmap
import subprocess
import sys

import numpy as np
import numpy.typing as npt

from flashmoe import _native

PROT_NONE = 0
COLUMNS = (32, 64, 96, 160, 288, 352, 544, 1056)


def before_a_wall(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """A copy that ends at the end of its last readable page."""
    page = mmap.PAGESIZE
    room = -(-values.nbytes // page) * page
    memory = mmap.mmap(-1, room + page)
    array = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(array.ctypes.data + room), page, PROT_NONE):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = array[room - values.nbytes : room].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def run_every_product() -> None:
    for kind in _native.instruction_sets():
        for columns in COLUMNS:
            x = before_a_wall(np.ones((5, columns), np.float32))
            y = before_a_wall(np.zeros((5, 3), np.float32))
            for bits in (2, 3, 4, 5, 6, 8):
                weight = before_a_wall(np.zeros((3, columns * bits // 32), np.uint32))
                for group in (32, 64, 128):
                    if columns % group:
                        continue
                    for scalar, element in ((0, np.float32), (1, np.uint16), (2, np.uint16)):
                        scales = before_a_wall(np.zeros((3, columns // group), element))
                        form = bits, group, scalar
                        _native.matmul_affine(x, weight, scales, scales, *form, y, 1, kind)
                        matrix = _native.Matrix((weight, scales, scales, *form), columns)
                        _native.project(x, [matrix], y.reshape(-1), 1, kind, True)
        for columns in (1, 7, 15, 16, 17, 31, 33, 63):
            x = before_a_wall(np.ones((5, columns), np.float32))
            for scalar, element in ((0, np.float32), (1, np.uint16), (2, np.uint16)):
                weight = before_a_wall(np.zeros((3, columns), element))
                _native.matmul_plain(x, weight, scalar, y, 1, kind)


def run_every_step() -> None:
    def walled(*shape: int, kind: npt.DTypeLike = np.float32) -> npt.NDArray[np.generic]:
        return before_a_wall(np.ones(shape, kind))

    for kind in _native.instruction_sets():
        for width in (1, 5, 16, 23, 33, 80):
            x, y = walled(3, width), walled(3, width)
            _native.rms_norm(x, walled(width), 1e-6, y, 1, kind)
            top = min(4, width)
            _native.route(x, True, walled(3, top, kind=np.int64), walled(3, top), kind)
            _native.combine(walled(2, width), walled(1, 2), walled(1, width), kind)
            channels = 2 * width + 2 * 2 * width
            small = walled(channels, 4), walled(2), walled(2), walled(2 * width)
            net = _native.DeltaNet(1, 2, width, 2 * width, *small, 1e-6)
            conv, delta = (3, channels), (2, width, 2 * width)
            net.step(walled(channels), walled(4 * width), walled(2), walled(2), walled(*conv),
                     walled(*delta), walled(*conv), walled(*delta), walled(4 * width), 1,
                     kind)  # fmt: skip
            for start in (0, 61):
                net.chunk(walled(5, channels), walled(5, 4 * width), walled(5, 2), walled(5, 2),
                          walled(*conv), walled(*delta), walled(*conv), walled(*delta),
                          walled(5, 4 * width), start, 1, kind)  # fmt: skip
            heads, dim = 13, width + width % 2
            norm = walled(dim)
            attention = _native.Attention(heads, 1, dim, dim, True, norm, norm, 1e-6)
            for form, element in enumerate((np.float32, np.uint16, np.int8, np.uint16)):
                scales = walled(1, 300) if form == 2 else None
                rows = walled(1, 300, dim, kind=element), walled(1, 300, dim, kind=element)
                kv = _native.KeyValues(form, *rows, scales, scales)
                turn = walled(dim // 2)
                attention.step(walled(2 * heads * dim), norm, norm, turn, turn, kv, 299,
                               walled(heads * dim), 1, kind)  # fmt: skip
                turns = walled(3, dim // 2), walled(3, dim // 2)
                attention.chunk(walled(3, 2 * heads * dim), walled(3, dim), walled(3, dim), *turns,
                                kv, 297, walled(3, heads * dim), 1, kind)  # fmt: skip


def run_every_draw() -> None:
    for kind in _native.instruction_sets():
        for count in (1, 3, 15, 16, 31, 33, 511, 513, 1040):
            places, values = np.array([0, count - 1][: min(count, 2)]), np.ones(min(count, 2))
            changed = before_a_wall(places), before_a_wall(values)
            y = before_a_wall(np.ones(-(-count // _native.DRAW_BLOCK)))
            for element in (np.float32, np.float64):
                logits = before_a_wall(np.ones(count, element))
                plain = _native.Scores(logits, changed[0][:0], changed[1][:0])
                for row in (plain, _native.Scores(logits, *changed)):
                    row.peaks(y, 1, kind)
                    row.masses(1.0, 1.4, y, 1, kind)
                    row.widen(0, before_a_wall(np.ones(count)))
                    row.peaks(y, 1, kind)
                    found = before_a_wall(np.ones(count, np.int64)), before_a_wall(np.ones(count))
                    row.above(y, 0.0, *found)
                if element is np.float32:
                    plain.guesses(1.0, 1.4, y, 1, kind)
            x = before_a_wall(np.ones(count))
            _native.weights(x, 1.0, 1.4, before_a_wall(np.ones(count)), kind)


def in_a_process(code: str) -> int:
    call = f"import runpy; m = runpy.run_path({__file__!r}); {code}"
    return subprocess.run([sys.executable, "-c", call], check=False).returncode


def test_the_wall_is_felt() -> None:
    beyond = "ctypes.string_at(m['before_a_wall'](a).ctypes.data, 65)"
    assert in_a_process(f"import ctypes; a = m['np'].zeros(64, 'u1'); {beyond}") < 0


def test_no_step_reads_or_writes_outside_its_arrays() -> None:
    assert in_a_process("m['run_every_step']()") == 0


def test_no_product_reads_outside_its_arrays() -> None:
    assert in_a_process("m['run_every_product']()") == 0


def test_no_draw_reads_or_writes_outside_its_arrays() -> None:
    assert in_a_process("m['run_every_draw']()") == 0
