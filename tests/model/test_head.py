"""The head by itself gives the logits of the whole model."""

import numpy as np
import pytest

from flashmoe import kernels
from flashmoe.engine import Engine
from flashmoe.model.head import Head, tensor_names
from flashmoe.model.trunk import Trunk
from flashmoe.store.reader import Store
from tests.synthetic import DENSE, HYBRID, write_store


@pytest.mark.parametrize("shape", [HYBRID, DENSE], ids=["untied", "tied"])
def test_a_head_needs_its_own_tensors_alone(shape, tmp_path):
    path = write_store(tmp_path / "store", shape)
    store, chosen = Store.open(path), kernels.choose("auto", "float32", 1)
    names = tensor_names(shape)
    tensors = store.trunk(names)
    assert set(tensors) == names and len(names) == 2
    head = Head(shape, Trunk(tensors, chosen.dtype), chosen)
    x = np.random.default_rng(5).standard_normal((3, shape.hidden)).astype(np.float32)
    with Engine.open(path) as engine:
        np.testing.assert_array_equal(head.logits(x), engine.head(x))
