"""Law 3: the budget is a promise. Peak resident memory is measured from outside, per process."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from flashmoe.quant import Plain
from flashmoe.shape import ExpertsShape
from tests.synthetic import HYBRID, write_store

MIB = 1 << 20

RUN = """
import json, sys
from flashmoe.engine import Engine
from flashmoe.errors import BudgetError
from flashmoe.options import Budget, Sampling
from flashmoe.stream.memory import peak_resident_bytes
path, ram = sys.argv[1], int(sys.argv[2])
try:
    with Engine.open(path, budget=Budget(ram_bytes=ram, context_tokens=400)) as engine:
        session = engine.session()
        session.logits([i % 96 for i in range(300)])
        steps = list(session.generate([1], Sampling(temperature=0, max_tokens=40)))
        plan = engine.plan.to_json()
    print(json.dumps({"peak": peak_resident_bytes(), "plan": plan,
                      "misses": sum(step.misses for step in steps)}))
except BudgetError as error:
    print(json.dumps({"refused": str(error)}))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A store whose experts alone take 192 MiB, so that a cache makes a difference."""
    experts = ExpertsShape(16, 2, 4096, "softmax", True, 32)
    shape = replace(HYBRID, experts=experts)
    return write_store(tmp_path_factory.mktemp("b") / "store", shape, Plain("F32"))


def run(path, ram):
    command = [sys.executable, "-c", RUN, str(path), str(ram)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_peak_memory_stays_under_three_budgets_and_below_the_floor_is_refused(path):
    generous = run(path, 2048 * MIB)
    floor = generous["plan"]["floor_bytes"]
    budgets = (floor + 4 * MIB, floor + 48 * MIB, floor + 256 * MIB)
    misses = []
    for ram in budgets:
        result = run(path, ram)
        assert result["peak"] <= ram, f"{result['peak'] / MIB:.1f} of {ram / MIB:.1f} MiB"
        misses.append(result["misses"])
    assert misses[0] > misses[-1] == generous["misses"]
    refused = run(path, floor - 16 * MIB)
    assert "below the floor" in refused["refused"] and "--ram" in refused["refused"]
