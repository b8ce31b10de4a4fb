"""The rows of /stats: figures of replies only where there are some, and no "1 tokens"."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from flashmoe.apps.chat.figures import stats
from flashmoe.apps.chat.talk import Talk
from flashmoe.apps.chat.tools import Toolbox
from flashmoe.apps.chat.transcript import Transcript
from flashmoe.engine import Engine
from flashmoe.text.pieces import Content
from tests.apps.chat.fakes import Person, Script


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
