"""What drawing a token takes, by options and by the shape of the logits.

    .venv/bin/python bench/draw.py [--words 248044] [--turns 60] [--threads 2] [--save]

Every case draws once a turn, all cases in turns, from float32 logits that are written anew before,
as a pass does. `argmax` is numpy's alone. Peaked logits are normal ones of deviation 3 with eight
high peaks, as models give them; wide ones lack the peaks, flat ones have deviation 0.3, and equal
ones none. Medians in milliseconds of the wall's clock, with the lowest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import results
from command import run, whole

from flashmoe.options import Sampling
from flashmoe.sampler import Sampler

CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature 1": {},
    "min-p 0.05": {"min_p": 0.05},
    "top-k 20": {"top_k": 20},
    "top-k 5,000": {"top_k": 5000},
    "top-p 0.95": {"top_p": 0.95},
    "usual filters": {"top_k": 20, "top_p": 0.95, "min_p": 0.05, "presence_penalty": 1.5},
    "repetition penalty": {"repetition_penalty": 1.1},
    "log-probabilities": {"logprobs": 20},
}
PROMPT_TOKENS = 2000
"""What the repetition penalty is about, besides the reply."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=whole(2), default=248_044)
    parser.add_argument("--turns", type=whole(3), default=60)
    parser.add_argument("--threads", type=whole(1, 1024), default=2)
    results.add_arguments(parser)
    given = parser.parse_args()
    words, found = given.words, {}
    for shape, logits in shapes(words).items():
        found[shape] = in_turns(drawers(words, given.threads), logits, given.turns)
    print(f"{'milliseconds, median (lowest)':<30}" + "".join(f"{shape:>18}" for shape in found))
    for case in next(iter(found.values())):
        row = "".join(f"{times['median']:>10.3f} ({times['lowest']:.3f})"
                      for times in (found[shape][case] for shape in found))  # fmt: skip
        print(f"{case:<30}{row}")
    asked = {"words": words, "turns": given.turns, "threads": given.threads}
    results.save_if_asked(given, "draw", found, asked)
    print(json.dumps(found))


def shapes(words: int) -> dict[str, np.ndarray]:
    """Logits (words,) of each shape."""
    random = np.random.default_rng(1)
    peaked = (random.standard_normal(words) * 3).astype(np.float32)
    few = min(8, words)
    peaked[random.choice(words, few, replace=False)] = 26 - np.arange(few, dtype=np.float32) / 2
    wide = (random.standard_normal(words) * 3).astype(np.float32)
    return {
        "peaked": peaked,
        "wide": wide,
        "flat": (random.standard_normal(words) * 0.3).astype(np.float32),
        "equal": np.ones(words, np.float32),
    }


def drawers(words: int, threads: int) -> dict[str, Callable[[np.ndarray], object]]:
    prompt = np.random.default_rng(2).integers(0, words, PROMPT_TOKENS).tolist()
    drawn: dict[str, Callable[[np.ndarray], object]] = {"argmax": np.argmax}
    for case, options in CASES.items():
        drawn[case] = Sampler(Sampling(seed=1, **options), prompt, threads=threads)
    return drawn


def in_turns(
    draws: dict[str, Callable[[np.ndarray], object]], given: np.ndarray, turns: int
) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {case: [] for case in draws}
    logits = np.empty_like(given)
    for _ in range(turns):
        for case, draw in draws.items():
            logits[:] = given
            began = time.perf_counter()
            draw(logits)
            times[case].append((time.perf_counter() - began) * 1e3)
    return {
        case: {"median": statistics.median(each), "lowest": min(each)}
        for case, each in times.items()
    }


if __name__ == "__main__":
    run(main)
