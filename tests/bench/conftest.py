"""Modules of bench/ import one another by their plain names, as scripts do."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Protocol

import pytest

BENCH = Path(__file__).parents[2] / "bench"


class Load(Protocol):
    def __call__(self, name: str) -> ModuleType: ...


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """A module of bench/ by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module
