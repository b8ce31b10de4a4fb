"""The rows of /stats: figures of replies only where there are some, and no "1 tokens"."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from flashmoe.apps.chat.figures import stats
from flashmoe.apps.chat.talk import Talk
from flashmoe.apps.chat.tools import Toolbox
from flashmoe.apps.chat.transcript import Transcript
from flashmoe.engine import Engine
from flashmoe.kernels import on_device
from flashmoe.options import Budget, Runtime
from flashmoe.step import Totals
from flashmoe.text.pieces import Content
from tests.apps.chat.fakes import Person, Script, step
from tests.kernels.cuda.emulated import EmulatedDevice


@pytest.fixture
def engine(store: Path) -> Iterator[Engine]:
    with Engine.open(store) as engine:
        yield engine


def shown(engine: Engine, talk: Talk) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=100)
    console.print(stats(engine, talk))
    assert isinstance(console.file, io.StringIO)
    return [line.strip().split(maxsplit=1) for line in console.file.getvalue().splitlines()]


def test_the_figures_come_with_the_first_reply(engine: Engine) -> None:
    script = Script([[Content("yes")]])
    talk = Talk(engine.session(), script.begin, Toolbox(), lambda *_: "", Transcript("demo"))
    before = dict(shown(engine, talk))
    assert list(before) == ["turns", "context", "memory"]
    assert before["turns"] == "none yet: figures come with the first reply"
    talk.say("Hi", Person())
    after = dict(shown(engine, talk))
    assert list(after) == ["turns", "context", "prompts", "replies", "experts", "memory"]
    assert after["turns"] == "1, 1 reply in this process"
    assert after["prompts"].startswith("3 tokens read, 1500.0 tok/s, 0 from the prefix cache")
    assert after["replies"] == "1 token, 0.0 tok/s"
    assert after["experts"].startswith("50.0% hits, 1e-08 GB read, 0.0 s waited")


def test_the_tier_of_vram_has_rows_of_its_own() -> None:
    kernels, runtime = on_device(EmulatedDevice()), Runtime(profile=False, threads=1)
    budget = Budget(context_tokens=64, vram_bytes=78 << 20)
    with Engine.open("demo", kernels=kernels, budget=budget, runtime=runtime) as engine:
        assert engine.vram is not None
        script = Script([[Content("yes")]])
        talk = Talk(engine.session(), script.begin, Toolbox(), lambda *_: "", Transcript("demo"))
        before = dict(shown(engine, talk))
        assert before["VRAM"].endswith(f" MiB of emulated, {engine.vram.slots} slots")
        talk.spent.replies.append(Totals.of([replace(step(), vram_hits=3, vram_misses=1)]))
        after = [" ".join(line) for line in shown(engine, talk)]
        assert "experts in VRAM 75.0% hits, 0 GB copied, 0.0 s waited for copies" in [
            " ".join(line.split()) for line in after
        ]
