"""flashmoe: Mixture-of-Experts models far larger than memory, streamed from SSD.

    from flashmoe import Engine

    with Engine.open("demo") as engine:
        session = engine.session()
        for step in session.generate(engine.tokenizer.encode("Emma was sitting")):
            print(step.text, end="")

Two nouns explain everything: an :class:`Engine` is a loaded model, a :class:`Session` one
timeline. A :class:`Step` is one token and its cost. Read in this order: ``engine``, ``session``,
``model.moe``, ``stream.streamer``, ``store.layout``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashmoe.engine import Engine
    from flashmoe.errors import (
        BudgetError,
        CancelledError,
        CheckpointError,
        ClosedError,
        ContextError,
        ConversionError,
        DeviceError,
        FlashMoeError,
        InputError,
        ReadError,
        SessionError,
        StoreError,
        TemplateError,
    )
    from flashmoe.options import Budget, PrefixCache, Runtime, Sampling
    from flashmoe.progress import Progress
    from flashmoe.session import Session
    from flashmoe.snapshot import Snapshot
    from flashmoe.step import Step

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "BudgetError",
    "CancelledError",
    "CheckpointError",
    "ClosedError",
    "ContextError",
    "ConversionError",
    "DeviceError",
    "Engine",
    "FlashMoeError",
    "InputError",
    "PrefixCache",
    "Progress",
    "ReadError",
    "Runtime",
    "Sampling",
    "Session",
    "SessionError",
    "Snapshot",
    "Step",
    "StoreError",
    "TemplateError",
    "__version__",
]

_HOMES = {
    "Engine": "engine",
    "Progress": "progress",
    "Session": "session",
    "Snapshot": "snapshot",
    "Step": "step",
    **dict.fromkeys(("Budget", "PrefixCache", "Runtime", "Sampling"), "options"),
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: the command line starts without numpy."""
    if name not in __all__:
        raise AttributeError(f"module 'flashmoe' has no attribute {name!r}")
    home = import_module(f"flashmoe.{_HOMES.get(name, 'errors')}")
    value = getattr(home, name)
    globals()[name] = value
    return value
