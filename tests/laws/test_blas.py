"""Law 1 at the sizes where BLAS splits its work: the answer does not depend on its threads."""

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from flashmoe.engine import Engine
from flashmoe.shape import AttentionShape, RecurrentShape
from tests.synthetic import HYBRID, write_store

SHAPE = replace(
    HYBRID,
    hidden=128,
    attention=AttentionShape(16, 2, 128, 32, 1e4, gated=True, qk_norm=True),
    recurrent=RecurrentShape(4, 8, 64, 64, 4),
    max_context_tokens=1024,
)
IDS = [int(i) for i in np.random.default_rng(1).integers(0, 96, 800)]


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_logits_are_the_same_with_one_blas_thread_and_with_two(tmp_path, kernels):
    path = write_store(tmp_path / "store", SHAPE)
    answers = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"), Engine.open(path, kernels=kernels) as e:
            session = e.session()
            answers.append((session.logits(IDS), session.logits([1]), session.logits([2])))
    for one, two in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, two)
