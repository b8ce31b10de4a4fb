"""How quickly a GPU decodes a store at several divisions of its memory, and what holds it back.

    .venv/bin/python bench/gpu_tokens.py STORE all 6410MiB:40GiB 6410MiB:12GiB [--tokens 96]
        [--rounds 3] [--warm-tokens 64] [--experts-per-token K] [--gpu 0] [--save]

A division is VRAM:RAM, or `all` for as much of both as there is. One engine after the other is
opened, warmed by greedy replies to random prompts of a few tokens, and measured by more of them:
the greedy choice costs the host least, so that the rest is the engine's. Tokens a second are the
median of the rounds. Each ceiling is measured first: a copy from pinned memory, one within the
GPU's memory, direct reads of the store. The limit is the longest of three times: what a token
missed in VRAM over the copies' rate, what it read from the store over the disk's, and every weight
that it is multiplied with over the memory's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import results
from command import run, whole

from flashmoe import Budget, Engine, Runtime, Sampling
from flashmoe.apps.bench_figures import touched_bytes
from flashmoe.apps.ceilings import disk_rate
from flashmoe.kernels.cuda.gpu import Gpu
from flashmoe.store.reader import Store
from flashmoe.stream.units import parse_bytes

PROMPT_TOKENS = 4
CONTEXT_TOKENS = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("divisions", nargs="+", metavar="VRAM:RAM")
    parser.add_argument("--tokens", type=whole(2), default=96)
    parser.add_argument("--rounds", type=whole(), default=3)
    parser.add_argument("--warm-tokens", type=whole(), default=64)
    parser.add_argument("--experts-per-token", type=whole())
    parser.add_argument("--gpu", type=whole(0), default=0)
    results.add_arguments(parser)
    given = parser.parse_args()
    gpu, store = Gpu(given.gpu), Store.open(given.store)
    rates = {
        "copies": gpu.copy_rate(),
        "vram": gpu.memory_rate(),
        "disk": disk_rate(store)[0],
    }
    print(", ".join(f"{name} {rate / 1e9:.2f} GB/s" for name, rate in rates.items()), flush=True)
    print("| VRAM:RAM | slots | tok/s | hits in VRAM | copied | read | limit | share | binds |")
    print("|---|---|---|---|---|---|---|---|---|")
    line: dict[str, Any] = {"gpu": gpu.name, "rates": rates, "cases": {}}
    for division in given.divisions:
        line["cases"][division] = figures = measured(given, division, rates)
        print(row(division, figures), flush=True)
    print(json.dumps(line))
    settings = {"store": given.store.name, "tokens": given.tokens, "rounds": given.rounds}
    results.save_if_asked(given, "gpu_tokens", line, settings)


def measured(given: argparse.Namespace, division: str, rates: dict[str, float]) -> dict[str, Any]:
    """The figures of one engine, which is closed behind them."""
    vram, _, ram = division.partition(":")
    limits = [None if text in ("all", "") else parse_bytes(text) for text in (vram, ram)]
    budget = Budget(context_tokens=CONTEXT_TOKENS, vram_bytes=limits[0], ram_bytes=limits[1])
    with Engine.open(
        given.store,
        kernels=f"cuda:{given.gpu}",
        budget=budget,
        experts_per_token=given.experts_per_token,
        runtime=Runtime(profile=False),
    ) as engine:
        warm = given.warm_tokens
        while warm > 0:
            reply(engine, warm, min(warm, given.tokens))
            warm -= given.tokens
        rounds = [reply(engine, -1 - number, given.tokens) for number in range(given.rounds)]
        tokens = given.tokens - 1
        seconds = statistics.median(seconds for seconds, _ in rounds) / tokens
        of_all = {
            name: statistics.median(getattr(cost, name) for _, cost in rounds) / tokens
            for name in ("vram_hits", "vram_misses", "copied_bytes", "bytes_read", "wait_ms")
        }
        least = {
            "copies": of_all["copied_bytes"] / rates["copies"],
            "disk": of_all["bytes_read"] / rates["disk"],
            "vram": touched_bytes(engine) / rates["vram"],
        }
        slots = engine.vram.slots if engine.vram else 0
        ram_slots = engine.streamer.slots
    binds = max(least, key=lambda tier: least[tier])
    return {
        "slots": slots,
        "ram_slots": ram_slots,
        "tokens_per_second": 1 / seconds,
        "rounds": [tokens / seconds for seconds, _ in rounds],
        "a_token": of_all,
        "limit_tokens_per_second": 1 / least[binds],
        "share": least[binds] / seconds,
        "binds": binds,
    }


def reply(engine: Engine, seed: int, tokens: int) -> tuple[float, Any]:
    """A greedy reply: seconds from its first token to its last, and the counters between."""
    vocabulary = engine.shape.vocabulary
    ids = np.random.default_rng(seed % 1000).integers(0, vocabulary, PROMPT_TOKENS).tolist()
    session, moments, before = engine.session(), list[float](), engine.counters
    while len(moments) < tokens:  # again after a stop token
        sampling = Sampling(temperature=0, max_tokens=tokens - len(moments))
        for _ in session.generate(ids, sampling):
            moments.append(time.perf_counter())
            if len(moments) == 1:
                before = engine.counters
        ids = []
    return moments[-1] - moments[0], engine.counters.since(before)


def row(division: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    token = found["a_token"]
    hits = token["vram_hits"] / max(token["vram_hits"] + token["vram_misses"], 1e-9)
    return (
        f"| {division} | {found['slots']:,} + {found['ram_slots']:,} "
        f"| {found['tokens_per_second']:.1f} | {hits:.1%} | {token['copied_bytes'] / 1e6:,.0f} MB "
        f"| {token['bytes_read'] / 1e6:,.0f} MB | {found['limit_tokens_per_second']:.1f} "
        f"| {found['share']:.0%} | {found['binds']} |"
    )


if __name__ == "__main__":
    run(main)
