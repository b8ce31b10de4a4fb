"""The pool of native/threads.cpp: shared by Python threads, and usable after a fork."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flashmoe import _native

X = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
WEIGHT = np.random.default_rng(1).standard_normal((300, 512)).astype(np.float32)


def product(threads: int) -> bytes:
    y = np.zeros((4, 300), np.float32)
    _native.matmul_plain(X, WEIGHT, 0, y, threads)
    return y.tobytes()


def test_python_threads_take_turns() -> None:
    wanted = product(1)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(product, [1, 2, 3, 4, 5] * 40))
    assert all(answer == wanted for answer in answers)


def test_a_forked_child_makes_its_own_pool() -> None:
    wanted = product(3)  # the parent's pool exists before the fork
    child = os.fork()
    if child == 0:
        os._exit(0 if product(3) == wanted else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert product(3) == wanted
