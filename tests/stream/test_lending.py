"""Records lent from RAM: the bytes of the store, padding included."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from flashmoe.options import Runtime
from flashmoe.stream.streamer import Streamer
from tests.stream.conftest import LAYERS, TinyStore


def test_the_record_of_what_a_hold_yields_is_the_stores(tiny: TinyStore) -> None:
    with closing(Streamer(tiny.store, 4, Runtime(io_threads=2))) as streamer:
        for layer in range(LAYERS):
            with streamer.hold(layer, np.array([1, 6])) as experts:
                for expert, _ in experts:
                    record = streamer.lending.record(layer, expert)
                    np.testing.assert_array_equal(record, tiny.records[layer][expert])
                    assert not record.flags.writeable


def test_what_is_not_in_memory_has_none(tiny: TinyStore) -> None:
    with (
        closing(Streamer(tiny.store, 4, Runtime(io_threads=2))) as streamer,
        pytest.raises(KeyError),
    ):
        streamer.lending.record(0, 1)
