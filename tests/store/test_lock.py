"""One process at a time in a directory."""

import os
import threading
import time

import pytest

from flashmoe.store.lock import alone

fcntl = pytest.importorskip("fcntl")


def test_a_second_waits_for_the_first(tmp_path):
    order, inside = [], threading.Event()

    def first():
        with alone(tmp_path, 10):
            inside.set()
            time.sleep(0.1)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with alone(tmp_path, 10):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_patience_ends_and_nothing_stays_open(tmp_path):
    before = len(os.listdir("/dev/fd"))
    with alone(tmp_path, 1):
        began = time.monotonic()
        with (
            pytest.raises(BlockingIOError, match="has locked the directory"),
            alone(tmp_path, 0.05),
        ):
            pytest.fail("two are inside")
        assert time.monotonic() - began >= 0.05
    assert len(os.listdir("/dev/fd")) == before


def test_what_fails_inside_lets_go(tmp_path):
    with pytest.raises(ZeroDivisionError), alone(tmp_path, 1):
        raise ZeroDivisionError
    with alone(tmp_path, 0):
        pass


def test_a_directory_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError), alone(tmp_path / "none", 1):
        pytest.fail("there is nothing to lock")
