"""What a command line asked of a run, checked before anything is loaded.

Owns the record and its making from the flags; ``cli`` declares these, ``run`` does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flashmoe import kernels as kernel_sets
from flashmoe.apps.conversation import Prompt, read_prompt, read_tools
from flashmoe.apps.places import device_cache, prefix_directory
from flashmoe.errors import InputError
from flashmoe.options import Budget, PrefixCache, Runtime, Sampling
from flashmoe.stream.units import parse_bytes


@dataclass(frozen=True)
class Limits:
    """What ``--ram --context --slots --experts-per-token --kv --vram`` said."""

    ram: str | None = None
    context: int | None = None
    slots: int | None = None
    experts: int | None = None
    kv: str = Budget.kv
    vram_bytes: int | None = None


@dataclass(frozen=True)
class Files:
    """What is written and read beside the reply."""

    trace_out: Path | None = None
    save: Path | None = None
    load: Path | None = None

    def __post_init__(self) -> None:
        for flag, path in (("--save", self.save), ("--trace-out", self.trace_out)):
            if path is not None and not path.parent.is_dir():
                raise InputError(f"{flag} {path}: there is no directory {path.parent}; make it")


@dataclass(frozen=True)
class Report:
    """What is told after the reply."""

    timing: bool = False
    json: bool = False


@dataclass(frozen=True)
class Request:
    """Everything that the command line said."""

    store: str
    prompt: Prompt
    limits: Limits
    runtime: Runtime
    kernels: str
    sampling: dict[str, Any]
    files: Files
    report: Report
    prefix_cache: PrefixCache | None = None

    def __post_init__(self) -> None:
        if not self.prompt.text and self.files.load is None:
            raise InputError("the prompt is empty: give a PROMPT, or pipe one into the command")
        if self.files.load is not None and (self.prompt.system is not None or self.prompt.tools):
            raise InputError(
                "--system and --tools belong to the opening of a conversation: leave them out, or "
                "leave out --load"
            )


def request_of(flags: Mapping[str, Any]) -> Request:
    """The request that the flags of ``run`` make, by the names of its parameters.

    Raises:
        InputError: values that are out of range, exclude each other, or name no file.
    """
    tools = flags["tools"]
    return Request(
        store=flags["store"],
        prompt=Prompt(
            text=read_prompt(flags["prompt"]),
            raw=flags["raw"],
            system=flags["system"],
            tools=[] if tools is None else read_tools(tools),
            thinking=flags["think"],
        ),
        limits=limits_of(flags),
        # A log replays to the run's own misses, so nothing but its routings may fill the cache.
        runtime=runtime_of({**flags, "profile": flags["profile"] and flags["trace_out"] is None}),
        kernels=flags["kernels"],
        sampling=sampling_of(flags),
        files=Files(flags["trace_out"], flags["save"], flags["load"]),
        report=Report(timing=flags["timing"], json=flags["stats"] == "json"),
        prefix_cache=kept_in(flags["prefix_cache"], flags["prefix_cache_size"]),
    )


def limits_of(flags: Mapping[str, Any]) -> Limits:
    """What the flags say of memory, and of experts a token.

    Raises:
        InputError: as :func:`vram_of`.
    """
    return Limits(
        flags["ram"],
        flags["context"],
        flags["slots"],
        flags["experts_per_token"],
        flags["kv"],
        vram_of(flags["vram"], flags["kernels"]),
    )


def vram_of(size: str | None, kernels: str) -> int | None:
    """The bytes that ``--vram`` gives ``--kernels``; None for no bound.

    Raises:
        InputError: kernels that are not known, a size that is none, or one without a GPU.
    """
    on_gpu = kernel_sets.on_gpu(kernels)
    if size is None:
        return None
    if not on_gpu:
        raise InputError(
            f"--vram {size} bounds a GPU's memory, and --kernels {kernels} uses no GPU: give "
            "--kernels cuda too, or leave --vram out"
        )
    limit = parse_bytes(size)
    if limit < 1:
        raise InputError(f"--vram {size} leaves no room: give a size above 0")
    return limit


def runtime_of(flags: Mapping[str, Any]) -> Runtime:
    """What the flags say of how the work is done.

    Raises:
        InputError: a value out of range.
    """
    given = {
        **flags,
        "store_dirs": tuple(flags["store_dirs"] or ()),
        "device_cache": device_cache(),
    }
    return Runtime(**{field.name: given[field.name] for field in fields(Runtime)})


def sampling_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags say of how tokens are drawn; what they do not is the store's.

    Raises:
        InputError: a value out of range, before anything is loaded.
    """
    given = {**flags, "stop": tuple(flags["stop"] or ())}
    said = {
        field.name: given[field.name]
        for field in fields(Sampling)
        if given.get(field.name) is not None
    }
    Sampling(**said)
    return said


def prefix_of(flags: Mapping[str, Any]) -> PrefixCache | None:
    """The prefix cache of a command that has one unless it is told otherwise.

    Raises:
        InputError: flags that exclude each other, no home to keep it in, and as :func:`kept_in`.
    """
    directory, size = flags["prefix_cache"], flags["prefix_cache_size"]
    if flags["no_prefix_cache"]:
        for name, value in (("--prefix-cache", directory), ("--prefix-cache-size", size)):
            if value is not None:
                raise InputError(f"--no-prefix-cache and {name} exclude each other")
        return None
    if directory is None:
        own = prefix_directory()
        if own is None:
            raise InputError(
                "this user has no home to keep the prefix cache in: give --prefix-cache DIR, or "
                "--no-prefix-cache"
            )
        directory = str(own)
    return kept_in(directory, size)


def kept_in(directory: str | None, size: str | None = None) -> PrefixCache | None:
    """The prefix cache that the flags ask for.

    Raises:
        InputError: an empty name, a size that is none, or one without a directory.
    """
    if directory is None:
        if size is not None:
            raise InputError("--prefix-cache-size bounds --prefix-cache: give its directory too")
        return None
    if not directory.strip():
        raise InputError("--prefix-cache has an empty name: give a directory")
    if size is None:
        return PrefixCache(Path(directory))
    limit = parse_bytes(size)
    if limit < 1:
        raise InputError(f"--prefix-cache-size {size} leaves no room: give a size above 0")
    return PrefixCache(Path(directory), limit)
