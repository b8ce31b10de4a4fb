"""What a command line asked of a chat, checked before anything is loaded.

Owns the record and its making from the flags, as ``apps.request`` for a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flashmoe.apps.chat.system import read_system
from flashmoe.apps.conversation import read_tools
from flashmoe.apps.request import Limits, limits_of, prefix_of, runtime_of, sampling_of
from flashmoe.errors import InputError
from flashmoe.options import PrefixCache, Runtime


@dataclass(frozen=True)
class ChatRequest:
    """Everything that the command line said. ``tools`` are definitions whose results a person
    types, ``switched_on`` names those that come with the chat."""

    store: str
    session: str | None
    system: str | None
    thinking: bool | None
    thinking_budget: int | None
    tools: tuple[Mapping[str, Any], ...]
    switched_on: tuple[str, ...]
    limits: Limits
    runtime: Runtime
    kernels: str
    sampling: Mapping[str, Any]
    prefix_cache: PrefixCache | None


def request_of(flags: Mapping[str, Any]) -> ChatRequest:
    """The request that the flags of ``chat`` make, by the names of its parameters.

    Raises:
        InputError: values that are out of range, exclude each other, or name no file.
    """
    system = flags["system"]
    if flags["system_file"] is not None:
        if system is not None:
            raise InputError("--system and --system-file say the same: leave one out")
        system = read_system(flags["system_file"])
    thinking, budget = flags["think"], flags["think_budget"]
    if budget is not None and thinking is False:
        raise InputError("--think-budget bounds what --no-think switches off: leave one out")
    tools = flags["tools"]
    return ChatRequest(
        store=flags["store"],
        session=flags["session"],
        system=system,
        thinking=thinking if budget is None else True,
        thinking_budget=budget,
        tools=() if tools is None else tuple(read_tools(tools)),
        switched_on=tuple(dict.fromkeys(flags["tool"] or ())),
        limits=limits_of(flags),
        runtime=runtime_of(flags),
        kernels=flags["kernels"],
        sampling=sampling_of(flags),
        prefix_cache=prefix_of(flags),
    )
