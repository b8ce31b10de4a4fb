"""``bench``: how quickly a store runs, and how much of what the machine allows that is.

Owns the procedure; the figures are ``bench_figures``'. Prompts are random ids of a fixed seed.
Replies are drawn at temperature 1, so that they do not run in a circle, and a stop token does
not end them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from flashmoe import kernels
from flashmoe.apps import bench_figures, ceilings, terminal
from flashmoe.apps.bench_figures import Reply
from flashmoe.apps.flags import LOSSY_KV
from flashmoe.apps.plan import budget_of
from flashmoe.apps.prompt_figures import PromptCost, Touched
from flashmoe.engine import Engine
from flashmoe.errors import InputError
from flashmoe.options import Budget, Runtime, Sampling
from flashmoe.planning import with_experts
from flashmoe.step import Step
from flashmoe.store.reader import Store
from flashmoe.stream import memory
from flashmoe.stream.rate import drop_pages

SEED = 20_817
"""Of the first prompt; each repetition has its own, so that none finds its experts in memory."""

WARMING_PROMPTS = 16
"""At most; each leaves fewer slots free."""


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    store: str
    prompt_tokens: int
    gen_tokens: int
    ram: str | None
    experts: int | None
    cold: bool
    repeat: int
    kernels: str
    runtime: Runtime
    kv: str = Budget.kv
    vram_bytes: int | None = None


def bench(request: Request, *, as_json: bool) -> None:
    """Measure the ceilings, then the store; print a table and a JSON line, or the line alone."""
    terminal.take_interrupts()
    store = Store.open(request.store, request.runtime.store_dirs)
    context, longest = request.prompt_tokens + request.gen_tokens, store.shape.max_context_tokens
    if context > longest:
        raise InputError(
            f"--prompt-tokens and --gen-tokens make {context}; this model takes {longest}"
        )
    own = store.shape.experts.top_k
    experts = with_experts(store.shape, request.experts).experts.top_k
    budget = budget_of(request.ram, context, None, experts, request.kv)
    budget = replace(budget, vram_bytes=request.vram_bytes)
    if experts != own:
        terminal.note(f"lossy: {experts} of {own} experts a token")
    if request.kv in LOSSY_KV:
        terminal.note(f"lossy: {LOSSY_KV[request.kv]}")
    chosen = kernels.choose(request.kernels, "float32", request.runtime.resolved_threads)
    terminal.note("measuring what disk and memory allow")
    limits, touched = ceilings.measure(store.path, request.runtime, request.kernels), Touched()
    with Engine.open(
        request.store,
        budget=budget,
        kernels=chosen,
        experts_per_token=request.experts,
        runtime=request.runtime,
        observer=touched,
    ) as engine:
        replies = repetitions(engine, request, touched)
        found = bench_figures.figures(engine, limits, replies, cold=request.cold)
    if not as_json:
        terminal.show(bench_figures.table(found), *bench_figures.remarks(found, own), "")
    terminal.write(json.dumps(found) + "\n")


def repetitions(engine: Engine, request: Request, touched: Touched) -> list[Reply]:
    """Every repetition; a first prompt that fills the cache is not among them."""
    if not request.cold:
        terminal.note("warming up")
        warm_up(engine, request.prompt_tokens + request.gen_tokens - 1)
    found = list[Reply]()
    for number in range(1, request.repeat + 1):
        terminal.note(f"repetition {number} of {request.repeat}")
        if request.cold:
            engine.empty_cache()
            drop_pages(engine.store.weight_files())
        tokens = (request.prompt_tokens, request.gen_tokens)
        found.append(reply(engine, SEED + number, *tokens, touched))
    return found


def warm_up(engine: Engine, prompt_tokens: int) -> None:
    """Prompts until every slot is full, or one hardly brings anything that was not there."""
    for number in range(WARMING_PROMPTS):
        free = engine.streamer.free_slots
        reply(engine, SEED - number, prompt_tokens, 1)
        if free - engine.streamer.free_slots <= engine.streamer.slots // 100:
            return


def reply(
    engine: Engine, seed: int, prompt_tokens: int, tokens: int, touched: Touched | None = None
) -> Reply:
    """A reply of exactly so many tokens to a random prompt, in a new timeline.

    ``touched`` is the engine's own observer: what it sees of the prompt is part of the reply.
    """
    vocabulary = engine.shape.vocabulary
    ids = np.random.default_rng(seed).integers(0, vocabulary, prompt_tokens).tolist()
    session, steps, touched = engine.session(), list[Step](), touched or Touched()
    marks = [memory.device_read_bytes()]
    touched.start(engine.shape.layers, engine.shape.experts.count)
    while len(steps) < tokens:  # again after a stop token
        left = tokens - len(steps)
        sampling = Sampling(temperature=1, seed=seed + len(steps), max_tokens=left)
        for step in session.generate(ids, sampling):
            steps.append(step)
            if len(steps) == 1:
                prompt = tuple(touched.stop())
                marks.append(memory.device_read_bytes())
        ids = []
    marks.append(memory.device_read_bytes())
    of_prompt, of_reply = (
        None if start is None or end is None else end - start for start, end in pairwise(marks)
    )
    return Reply(steps, of_reply, PromptCost(prompt, of_prompt))
