"""What rounding costs: perplexity of prompts, by the form of products and of keys and values.

    .venv/bin/python bench/rounding.py [STORE] [--texts 8] [--tokens 1000]

The first line is numpy's float32 throughout, the yardstick; then the native kernels, whose prompts
meet weights with activations of 16 bits (native/panels.h), with each form of keys and values. The
texts are the model's own, drawn at temperature 1 with fixed seeds, so that no file is needed and
the model is at home in them. Prints one JSON line a form.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from command import run, whole

from flashmoe import Budget, Engine, Runtime, Sampling
from flashmoe.options import KV_KINDS
from flashmoe.quant import Array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", nargs="?", default="demo")
    parser.add_argument("--texts", type=whole(1, 1000), default=8)
    parser.add_argument("--tokens", type=whole(2), default=1000)
    given = parser.parse_args()
    texts: list[list[int]] = []
    exact = 0.0
    for kernels, kv in (("reference", "f32"), *(("cpu", kind) for kind in KV_KINDS)):
        runtime, budget = Runtime(profile=False), Budget(kv=kv)
        with Engine.open(given.store, budget=budget, kernels=kernels, runtime=runtime) as engine:
            if not texts:
                texts = [written(engine, seed, given.tokens) for seed in range(given.texts)]
            losses = np.concatenate([surprise(engine, text) for text in texts])
        found = float(np.exp(losses.mean()))
        exact = exact or found
        line = {"kernels": kernels, "kv": kv, "tokens": len(losses), "perplexity": found}
        line["relative"] = found / exact - 1
        print(json.dumps(line), flush=True)


def written(engine: Engine, seed: int, tokens: int) -> list[int]:
    """A text of so many tokens, begun with a token of its own."""
    session, first = engine.session(), 100 + seed
    ids: list[int] = [first]
    while len(ids) < tokens:  # again after a stop token
        sampling = Sampling(temperature=1, seed=seed + len(ids), max_tokens=tokens - len(ids))
        begin = ids if len(ids) == 1 else ()
        ids = [*ids, *(step.id for step in session.generate(begin, sampling))]
    return ids


def surprise(engine: Engine, ids: list[int]) -> Array:
    """Negative log-probability of each token after the first."""
    logits = engine.session().logits(ids)[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    normal = np.log(np.exp(logits).sum(axis=1))
    losses: Array = normal - logits[np.arange(len(logits)), ids[1:]]
    return losses


if __name__ == "__main__":
    run(main)
