"""``serve``: a store, loaded, behind the server.

Owns the order of a start: checks, socket, engine, worker, listening; and of the end.
"""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.routing import Route

from flashmoe.apps.footer import vram_share
from flashmoe.apps.opening import open_engine
from flashmoe.apps.request import Limits as Memory
from flashmoe.apps.request import limits_of, prefix_of, runtime_of
from flashmoe.apps.serve import page
from flashmoe.apps.serve.app import build
from flashmoe.apps.serve.guard import LOOPBACK_NAMES, Guard, checked_key, checked_origin
from flashmoe.apps.serve.limits import Limits
from flashmoe.apps.serve.listening import (
    address_of,
    bound,
    is_everywhere,
    is_loopback,
    listen,
)
from flashmoe.apps.serve.map import EngineView, ExpertMap
from flashmoe.apps.serve.room import Sizes
from flashmoe.apps.serve.service import Served, Service
from flashmoe.apps.terminal import note
from flashmoe.engine import Engine
from flashmoe.errors import InputError
from flashmoe.options import DEFAULT_CONTEXT_TOKENS, PrefixCache, Runtime
from flashmoe.store.layout import MANIFEST
from flashmoe.stream.units import format_bytes, parse_bytes

KEY_VARIABLE = "FLASHMOE_API_KEY"


@dataclass(frozen=True)
class Where:
    """Where the server listens, and whom it answers. ``proxies`` are addresses and networks of
    proxies that are believed whom they ask for."""

    host: str
    port: int
    key: str | None
    origins: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """Everything that the command line said."""

    store: str
    where: Where
    name: str | None
    any_name: bool
    thinking: bool | None
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
    limits = Limits(
        connections=flags["connections"],
        body_bytes=parse_bytes(flags["max_body"]),
        request_s=flags["request_timeout"],
        write_s=flags["write_timeout"],
        idle_s=flags["idle_timeout"],
        grace_s=flags["grace"],
        waiting=flags["queue"],
    )
    return Request(
        store=flags["store"],
        where=Where(
            flags["host"],
            flags["port"],
            _key(flags["api_key"]),
            tuple(map(checked_origin, flags["cors_origin"] or ())),
            tuple(map(_checked_proxy, flags["proxy"] or ())),
        ),
        name=flags["model_name"],
        any_name=flags["any_model"],
        thinking=flags["think"],
        memory=limits_of(flags),
        runtime=runtime_of(flags),
        kernels=flags["kernels"],
        prefix_cache=prefix_of(flags),
        limits=limits,
    )


def _key(given: str | None) -> str | None:
    if given is not None:
        return checked_key(given, "--api-key")
    kept = os.environ.get(KEY_VARIABLE)
    return None if kept is None else checked_key(kept, KEY_VARIABLE)


def _checked_proxy(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip()))
    except ValueError as error:
        raise InputError(
            f"--proxy {text!r} is no address and no network ({error}): give one as 127.0.0.1 or "
            "10.0.0.0/8"
        ) from None


def serve(request: Request) -> int:
    """Serve until a signal ends it; returns the exit code."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    with bound(request.where.host, request.where.port) as listener:
        guard = _guard(request.where, listener)
        gc.collect()  # what the process weighs now is what the plan counts
        with open_engine(
            request.store,
            request.memory,
            request.runtime,
            request.kernels,
            request.prefix_cache,
            grammars=True,
            host_bytes=Sizes.of(request.limits, _context_tokens(request)).total_bytes,
        ) as engine:
            engine.tokenizer  # noqa: B018 - a store without words is refused at once
            service = Service(engine, _served(request, engine), request.limits)
            service.start()
            try:
                listen(
                    listener,
                    build(service, guard, pages(service)),
                    service,
                    lambda: note(_greeting(service, listener)),
                    note,
                    request.where.proxies,
                )
            finally:
                service.stop()
                service.worker.cut_short()
                service.worker.join(60)
    note("stopped")
    return 0


def _context_tokens(request: Request) -> int:
    """The longest timeline that the plan may come to."""
    return request.memory.context or DEFAULT_CONTEXT_TOKENS


def pages(service: Service) -> list[Route]:
    """What is there for people."""
    view = EngineView(service.engine, service.served.name)
    return [*page.routes(), *ExpertMap(view, lambda: service.is_stopping).routes()]


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


def _served(request: Request, engine: Engine) -> Served:
    path = engine.store.path
    name = request.name or ("demo" if request.store == "demo" else path.resolve().name)
    if request.thinking and engine.syntax.think_close is None:
        raise InputError(
            f"--think asks {name} to reason, and its chat template has no mark for that: leave it "
            "out"
        )
    made = int(Path(path, MANIFEST).stat().st_mtime)
    return Served(name, request.any_name, made, request.thinking)


def _room(engine: Engine) -> str:
    """The budget, and the GPU's where there is one."""
    told, vram = format_bytes(engine.plan.budget_bytes), vram_share(engine)
    return told if vram is None else f"{told} and {format_bytes(vram.vram_bytes)} of {vram.gpu}"


def _greeting(service: Service, listener: socket.socket) -> str:
    plan, address = service.engine.plan, address_of(listener)
    requests = format_bytes(service.sizes.total_bytes)
    beside = ", and at every other address of this machine" if is_everywhere(listener) else ""
    return (
        f"serving {service.served.name} at {address}, within {_room(service.engine)} "
        f"({requests} of it for requests), up to {plan.context_tokens} tokens; Ctrl-C ends it\n"
        f"the page is at {address}/, the API at {address}/v1{beside}"
    )
