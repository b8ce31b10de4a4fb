"""Modules of bench/ by their plain names, as they import one another (pytest's pythonpath)."""

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
def load() -> Load:
    """A module of bench/ by name."""
    return importlib.import_module
