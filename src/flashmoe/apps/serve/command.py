"""``serve``: a store, loaded, behind the server.

Owns the order of a start: checks, socket, engine, worker, listening; and of the end.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flashmoe.apps.flags import LOSSY_KV
from flashmoe.apps.places import device_cache, prefix_directory
from flashmoe.apps.plan import budget_of
from flashmoe.apps.request import Limits as Memory
from flashmoe.apps.request import kept_in
from flashmoe.apps.serve.app import build
from flashmoe.apps.serve.guard import LOOPBACK_NAMES, Guard
from flashmoe.apps.serve.limits import Limits
from flashmoe.apps.serve.listening import address_of, bound, is_loopback, listen
from flashmoe.apps.serve.service import Served, Service
from flashmoe.apps.terminal import note
from flashmoe.engine import Engine
from flashmoe.errors import InputError
from flashmoe.options import PrefixCache, Runtime
from flashmoe.store.layout import MANIFEST
from flashmoe.store.reader import Store
from flashmoe.stream.units import format_bytes, parse_bytes

KEY_VARIABLE = "FLASHMOE_API_KEY"

HOST_BYTES = 32 << 20
"""What requests and their replies may take beside the engine: bodies, prompts that wait, what was
not read yet."""


@dataclass(frozen=True)
class Where:
    """Where the server listens, and whom it answers."""

    host: str
    port: int
    key: str | None
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.key is not None and not self.key.strip():
            raise InputError("the API key is empty: give one, or leave it out")


@dataclass(frozen=True)
class Request:
    """Everything that the command line said."""

    store: str
    where: Where
    name: str | None
    any_name: bool
    memory: Memory
    runtime: Runtime
    kernels: str
    prefix_cache: PrefixCache | None
    limits: Limits = field(default_factory=Limits)


def request_of(flags: Mapping[str, Any]) -> Request:
    """The request that the flags of ``serve`` make, by the names of its parameters.

    Raises:
        InputError: values that are out of range or exclude each other.
    """
    key = flags["api_key"] if flags["api_key"] is not None else os.environ.get(KEY_VARIABLE)
    limits = Limits(
        body_bytes=parse_bytes(flags["max_body"]),
        request_s=flags["request_timeout"],
        write_s=flags["write_timeout"],
        idle_s=flags["idle_timeout"],
        grace_s=flags["grace"],
        waiting=flags["queue"],
    )
    runtime = Runtime(
        threads=flags["threads"],
        chunk_tokens=flags["chunk_tokens"],
        hints=flags["hints"],
        io=flags["io"],
        io_threads=flags["io_threads"],
        device_cache=device_cache(),
        profile=flags["profile"],
        store_dirs=tuple(flags["store_dirs"] or ()),
    )
    return Request(
        store=flags["store"],
        where=Where(flags["host"], flags["port"], key, tuple(flags["cors_origin"] or ())),
        name=flags["model_name"],
        any_name=flags["any_model"],
        memory=Memory(
            flags["ram"],
            flags["context"],
            flags["slots"],
            flags["experts_per_token"],
            flags["kv"],
        ),
        runtime=runtime,
        kernels=flags["kernels"],
        prefix_cache=_prefix_cache(flags),
        limits=limits,
    )


def _prefix_cache(flags: Mapping[str, Any]) -> PrefixCache | None:
    """As asked for; by default in this user's cache."""
    directory, size = flags["prefix_cache"], flags["prefix_cache_size"]
    if flags["no_prefix_cache"]:
        if directory is not None or size is not None:
            raise InputError("--no-prefix-cache and --prefix-cache exclude each other")
        return None
    if directory is None:
        found = prefix_directory()
        if found is None:
            raise InputError(
                "this user has no home to keep the prefix cache in: give --prefix-cache DIR, or "
                "--no-prefix-cache"
            )
        directory = str(found)
    return kept_in(directory, size)


def serve(request: Request) -> int:
    """Serve until a signal ends it; returns the exit code."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    with bound(request.where.host, request.where.port) as listener:
        guard = _guard(request.where, listener)
        with _open(request) as engine:
            engine.tokenizer  # noqa: B018 - a store without words is refused at once
            service = Service(engine, _served(request, engine), request.limits)
            service.start()
            try:
                listen(
                    listener,
                    build(service, guard),
                    service,
                    lambda: note(_greeting(service, listener)),
                )
            finally:
                service.stop()
                service.worker.cut_short()
                service.worker.join(60)
    return 0


def _guard(where: Where, listener: socket.socket) -> Guard:
    """Refuses to be open to others without a key."""
    loopback = is_loopback(listener)
    if not loopback and where.key is None:
        raise InputError(
            f"{where.host} can be reached from other machines, and there is no API key: give "
            f"--api-key (or {KEY_VARIABLE}), or listen at 127.0.0.1"
        )
    hosts = LOOPBACK_NAMES | {where.host.lower()} if loopback and where.key is None else None
    return Guard(where.key, hosts, where.origins)


def _open(request: Request) -> Engine:
    """Open the store within the budget, and say so where the answer will differ."""
    memory = request.memory
    own = Store.open(request.store, request.runtime.store_dirs).shape.experts
    wanted = own.top_k if memory.experts is None else memory.experts
    budget = budget_of(memory.ram, memory.context, memory.slots, wanted, memory.kv)
    gc.collect()  # what the process weighs now is what the plan counts
    engine = Engine.open(
        request.store,
        budget=replace(budget, host_bytes=HOST_BYTES),
        kernels=request.kernels,
        experts_per_token=memory.experts,
        runtime=request.runtime,
        prefix_cache=request.prefix_cache,
        grammars=True,
    )
    if wanted != own.top_k:
        note(
            "lossy: answers differ from the published model: "
            f"{wanted} of {own.top_k} experts a token"
        )
    if memory.kv in LOSSY_KV:
        note(f"lossy: {LOSSY_KV[memory.kv]}")
    return engine


def _served(request: Request, engine: Engine) -> Served:
    path = engine.store.path
    name = request.name or ("demo" if request.store == "demo" else path.resolve().name)
    return Served(name, request.any_name, int(Path(path, MANIFEST).stat().st_mtime))


def _greeting(service: Service, listener: socket.socket) -> str:
    plan = service.engine.plan
    return (
        f"serving {service.served.name} at {address_of(listener)}, within "
        f"{format_bytes(plan.budget_bytes)}, up to {plan.context_tokens} tokens; Ctrl-C ends it"
    )
