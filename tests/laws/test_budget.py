"""Law 3: the budget is a promise, and a long prompt keeps it.

Peak resident memory is measured from outside, per process.
"""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from flashmoe.quant import Plain
from flashmoe.shape import AttentionShape, ExpertsShape
from tests.synthetic import HYBRID, write_store

MIB = 1 << 20
CONTEXT = 2048  # of float32; of float64 half as many

RUN = """
import json, sys
from pathlib import Path
from flashmoe.engine import Engine
from flashmoe.errors import BudgetError
from flashmoe.options import Budget, PrefixCache, Runtime, Sampling
from flashmoe.stream.memory import peak_resident_bytes
path, dtype, ram, sessions, context = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
budget = Budget(ram_bytes=ram or None, context_tokens=context, sessions=sessions, kv="f32")
cache = PrefixCache(Path(sys.argv[7])) if len(sys.argv) > 7 else None
try:
    runtime = Runtime(chunk_tokens=32)
    with Engine.open(
        path, budget=budget, dtype=dtype, runtime=runtime, prefix_cache=cache
    ) as engine:
        if not ram:
            print(json.dumps({"plan": engine.plan.to_json()}))
            sys.exit()
        session = engine.session()
        prompt = [i % 96 for i in range(context - 16)]
        sampling = Sampling(temperature=1, seed=1, top_p=0.9999, logprobs=5, max_tokens=17)
        steps = list(session.generate(prompt, sampling))
        kept = Path(sys.argv[6])
        session.save(kept)
        others = [engine.session() for _ in range(sessions - 1)]
        cached = [next(one.generate(prompt, sampling)).cached_tokens for one in others if cache]
        for one in (*others, session):
            one.load(kept)
        kept.unlink()
        plan = engine.plan.to_json()
    print(json.dumps({"peak": peak_resident_bytes(), "plan": plan,
                      "misses": sum(step.misses for step in steps), "cached": cached}))
except BudgetError as error:
    print(json.dumps({"refused": str(error)}))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Experts of 192 MiB, so that a cache makes a difference; keys and values of 64 MiB a session
    and 40,000 words, so that leaving one of them out of the plan shows."""
    shape = replace(
        HYBRID,
        vocabulary=40_000,
        attention=AttentionShape(16, 16, 256, 16, 1e4, gated=True, qk_norm=True),
        experts=ExpertsShape(64, 2, 1024, "softmax", True, 32),
        max_context_tokens=CONTEXT,
    )
    return write_store(tmp_path_factory.mktemp("b") / "store", shape, Plain("F32"))


@pytest.fixture
def run(path, tmp_path):
    """A session whose context is filled, saved, and loaded by it and every other one planned.

    Nothing but the plan for ``ram`` 0.
    """

    def run(ram, dtype, sessions, *directory):
        context = CONTEXT * 4 // np.dtype(dtype).itemsize
        arguments = (path, dtype, ram, sessions, context, tmp_path / "kept", *directory)
        command = [sys.executable, "-c", RUN, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return run


def assert_kept(result, ram):
    assert result["peak"] <= ram, f"{result['peak'] / MIB:.1f} of {ram / MIB:.1f} MiB: {result}"


def test_peak_memory_stays_under_three_budgets_and_below_the_floor_is_refused(run):
    floor = run(0, "float32", 2)["plan"]["floor_bytes"]
    misses = []
    for ram in (floor + 4 * MIB, floor + 48 * MIB, floor + 256 * MIB):
        result = run(ram, "float32", 2)
        assert_kept(result, ram)
        misses.append(result["misses"])
        if ram == floor + 4 * MIB:
            assert result["peak"] > 0.75 * ram, "a floor that nothing needs is refused for nothing"
    assert misses[0] > misses[1] > misses[2]
    refused = run(floor - 16 * MIB, "float32", 2)
    assert "below the floor" in refused["refused"] and "--ram" in refused["refused"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_peak_memory_holds_for_one_session_in_either_dtype(run, dtype):
    floor = run(0, dtype, 1)["plan"]["floor_bytes"]
    result = run(floor + 4 * MIB, dtype, 1)
    assert_kept(result, floor + 4 * MIB)


LONG = 8192
LONG_RUN = """
import hashlib, json, sys
from flashmoe.engine import Engine
from flashmoe.options import Budget, Runtime, Sampling
from flashmoe.stream.memory import peak_resident_bytes, resident_bytes
path, ram, size, context = sys.argv[1], *map(int, sys.argv[2:5])
budget = Budget(ram_bytes=ram or None, context_tokens=context)
runtime = Runtime(chunk_tokens=size or None, profile=False)
with Engine.open(path, budget=budget, runtime=runtime) as engine:
    plan, most = engine.plan, engine.shape.vocabulary
    if not ram:
        print(json.dumps({"plan": plan.to_json()}))
        sys.exit()
    slots, sizes, session = [engine.streamer.slots], [], engine.session()
    run = engine.run

    def watched(ids, state, between):
        hidden, cost = run(ids, state, between)
        slots.append(engine.streamer.slots)
        sizes.append(len(hidden))
        return hidden, cost

    engine.run = watched
    prompt = [(7 * i * i + i) % most for i in range(context - 17)]
    steps = list(session.generate(prompt, Sampling(temperature=0, logprobs=5, max_tokens=16)))
    answer = [(step.id, step.logprob, step.top_logprobs) for step in steps]
    last = session.logits([1])
    print(json.dumps({"peak": peak_resident_bytes(), "slots": slots, "sizes": sizes,
        "plan": plan.to_json(), "answer": repr(answer), "withheld": engine.streamer.withheld,
        "last": hashlib.sha256(last.tobytes()).hexdigest()}))
"""


@pytest.fixture(scope="module")
def long_path(tmp_path_factory):
    """Keys and values of 32 MiB at 8,192 tokens; 192 experts of 384 KiB, 72 MiB together."""
    shape = replace(
        HYBRID,
        attention=AttentionShape(4, 4, 256, 16, 1e4, gated=True, qk_norm=True),
        experts=ExpertsShape(48, 2, 512, "softmax", True, 32),
        max_context_tokens=LONG,
    )
    return write_store(tmp_path_factory.mktemp("l") / "store", shape, Plain("F32"))


def long_run(path, ram, size=0):
    command = [sys.executable, "-c", LONG_RUN, *map(str, (path, ram, size, LONG))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_long_prompt_keeps_every_budget_while_the_cache_makes_room_and_answers_the_same(
    long_path,
):
    """As long as chunks are the same; that their size does not matter is a law of its own."""
    floor = long_run(long_path, 0, 256)["plan"]["floor_bytes"]
    roomy = long_run(long_path, floor + 400 * MIB, 256)
    assert_kept(roomy, floor + 400 * MIB)
    assert min(roomy["slots"]) == roomy["plan"]["experts_total"]
    for extra in (4 * MIB, 24 * MIB):
        ram = floor + extra
        found = long_run(long_path, ram, 256)
        assert_kept(found, ram)
        assert (found["answer"], found["last"]) == (roomy["answer"], roomy["last"])
        begun, *_, full = found["slots"]
        assert begun == found["plan"]["slots"] > full >= found["plan"]["full_slots"]
        assert found["withheld"] == 0
        # In steps, as keys and values come, and a prompt's scratch goes to the slots at its end.
        prompt = found["slots"][1 : 1 + LONG // 256]
        assert prompt == sorted(prompt, reverse=True) and begun > prompt[0] > prompt[-1]
        assert full > prompt[-1]


def test_a_chunk_that_is_chosen_keeps_the_budget_too(long_path):
    floor = long_run(long_path, 0)["plan"]["floor_bytes"]
    found = {}
    for extra in (4 * MIB, 400 * MIB):
        one = found[extra] = long_run(long_path, floor + extra)
        assert_kept(one, floor + extra)
        assert all(1 < size <= 2049 for size in one["sizes"][:-17])
    assert max(found[400 * MIB]["sizes"]) > max(found[4 * MIB]["sizes"]) >= 256


def test_peak_memory_holds_with_a_prefix_cache(run, tmp_path):
    """Twice: the second process begins with what the first has written."""
    floor = run(0, "float32", 2, tmp_path / "cache")["plan"]["floor_bytes"]
    assert floor - run(0, "float32", 2)["plan"]["floor_bytes"] > 64 * MIB
    for _ in range(2):
        result = run(floor + 4 * MIB, "float32", 2, tmp_path / "cache")
        assert_kept(result, floor + 4 * MIB)
        assert result["cached"] == [CONTEXT - 16]
