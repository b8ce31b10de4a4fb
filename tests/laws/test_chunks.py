"""Law 1 for prompts: chunks never show in the answer, as long as they end at multiples of 64."""

import numpy as np
import pytest

from flashmoe.engine import Engine
from flashmoe.options import KV_KINDS, Budget, Runtime
from flashmoe.quant import Affine, Plain
from tests.synthetic import DENSE, HYBRID, write_store

IDS = [int(i) for i in np.random.default_rng(9).integers(0, 96, 389)]
STORES = {"hybrid": (HYBRID, Affine(4, 32)), "dense": (DENSE, Affine(3, 32)),
          "plain": (HYBRID, Plain("F16"))}  # fmt: skip
SIZES = (64, 128, 192, 320, None)


@pytest.fixture(scope="module", params=STORES)
def path(request, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("c") / "store", *STORES[request.param])


def answer(path, size, pieces, kv="f16", slots=None, threads=None):
    """Logits of a prompt that comes in pieces, and of a token after it."""
    runtime = Runtime(chunk_tokens=size, threads=threads, profile=False)
    with Engine.open(path, budget=Budget(kv=kv, slots=slots), runtime=runtime) as engine:
        session, edges = engine.session(), (0, *pieces)
        given = [session.logits(IDS[a:b]) for a, b in zip(edges, pieces, strict=False)]
        return np.concatenate([*given, session.logits([7])])


@pytest.mark.parametrize("length", (65, 129, 389))
def test_the_size_of_chunks_does_not_change_a_bit(path, length):
    """A remainder of a single token joins the chunk before it."""
    wanted = answer(path, 512, (length,))
    for size in SIZES:
        assert np.array_equal(answer(path, size, (length,)), wanted), size


@pytest.mark.parametrize("kv", KV_KINDS)
def test_nor_do_the_form_of_keys_the_cache_and_the_threads_bring_it_back(path, kv):
    wanted = answer(path, None, (389,), kv)
    with Engine.open(path) as engine:
        floor = engine.plan.floor_slots
    for size, threads in ((64, 1), (192, 3)):
        assert np.array_equal(answer(path, size, (389,), kv, floor, threads), wanted), size


def test_pieces_that_begin_anywhere_pass_as_well_in_any_chunks(path):
    pieces = (77, 200, 389)
    wanted = answer(path, 512, pieces)
    for size in SIZES:
        assert np.array_equal(answer(path, size, pieces), wanted), size
