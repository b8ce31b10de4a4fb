"""What a command line asked of an evaluation, checked before anything is loaded.

Owns the record and its making from the flags of ``eval``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashmoe.apps.flags import MAX_TOKENS
from flashmoe.apps.request import Limits, limits_of, runtime_of
from flashmoe.errors import InputError
from flashmoe.options import Runtime, Sampling

WINDOW_TOKENS = 512
"""Tokens that pass in a window of a text, unless ``--context`` says otherwise: llama.cpp's."""


@dataclass(frozen=True)
class TextRequest:
    """A text to be predicted, and the other store's name where there is one."""

    path: Path
    context: int | None
    stride: int | None
    windows: int | None
    against: str | None

    def cut(self, longest: int) -> tuple[int, int]:
        """Tokens of a window, and from one to the next, for a model that takes ``longest``."""
        context = min(WINDOW_TOKENS, longest) if self.context is None else self.context
        return context, context if self.stride is None else self.stride


@dataclass(frozen=True)
class ToolsRequest:
    """Cases to be asked."""

    path: Path
    temperature: float
    seed: int
    max_tokens: int
    thinking: bool

    @property
    def sampling(self) -> dict[str, Any]:
        """What replaces the store's own."""
        return {"temperature": self.temperature, "seed": self.seed, "max_tokens": self.max_tokens}


@dataclass(frozen=True)
class Request:
    """Everything that the command line said."""

    store: str
    text: TextRequest | None
    tools: ToolsRequest | None
    limits: Limits
    runtime: Runtime
    kernels: str

    def __post_init__(self) -> None:
        if self.text is None and self.tools is None:
            raise InputError("there is nothing to evaluate: give --text, --tools, or both")


_OF_TEXT = ("context", "stride", "windows", "against")
_OF_TOOLS = ("temperature", "seed", "max_tokens", "think")


def request_of(flags: Mapping[str, Any]) -> Request:
    """The request that the flags make, by the names of the command's parameters.

    Raises:
        InputError: values that are out of range, or say something of what is not asked for.
    """
    text, tools = flags["text"], flags["tools"]
    for name in _OF_TEXT[1:]:
        if text is None and flags[name] is not None:
            raise InputError(f"--{name} is about a text: give --text, or leave it out")
    for name in _OF_TOOLS:
        if tools is None and flags[name] is not None:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} is about tool requests: give --tools, or leave it out")
    # What is evaluated says nothing of what a user will ask.
    runtime = runtime_of({**flags, "profile": False})
    return Request(
        flags["store"],
        None if text is None else TextRequest(text, *(flags[name] for name in _OF_TEXT)),
        None if tools is None else _tools(flags),
        limits_of(flags),
        runtime,
        flags["kernels"],
    )


def _tools(flags: Mapping[str, Any]) -> ToolsRequest:
    found = ToolsRequest(
        flags["tools"],
        flags["temperature"] or 0.0,
        flags["seed"] or 0,
        MAX_TOKENS if flags["max_tokens"] is None else flags["max_tokens"],
        bool(flags["think"]),
    )
    Sampling(**found.sampling)  # a value out of range is refused before anything is loaded
    return found
