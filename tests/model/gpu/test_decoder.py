"""The demo on a GPU, real or imitated, against the processor's own kernels."""

import numpy as np

from flashmoe import Budget, Engine, Runtime
from flashmoe.kernels import on_device
from tests.kernels.cuda.conftest import device, the_gpu  # noqa: F401
from tests.tolerances import FLOAT32_LOGITS

PLAIN = Runtime(profile=False, threads=1)
PROMPT = "Emma was sitting one"


def opened(kernels, **more):
    budget = Budget(context_tokens=64, ram_bytes=1 << 30, **more)
    return Engine.open("demo", kernels=kernels, budget=budget, runtime=PLAIN)


def test_logits_are_the_processors(device):  # noqa: F811
    with opened("cpu") as engine:
        ids = engine.tokenizer.encode(PROMPT)
        # One by one: a prompt's products round their activations, which these do not.
        wanted = session_logits(engine.session(), ids)
    with opened(on_device(device)) as engine:
        got = session_logits(engine.session(), ids)
    assert np.abs(got - wanted).max() < FLOAT32_LOGITS


def session_logits(session, ids):
    return np.concatenate([session.logits([token]) for token in ids])
