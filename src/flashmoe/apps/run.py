"""``run``: one reply to one prompt, streamed.

Owns the order of a run: words, engine, reply, saving, footer. Standard output gets the model's
text and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from flashmoe.apps import progress, timing
from flashmoe.apps.conversation import next_turn, opening
from flashmoe.apps.drives import drive_lines, drives_of
from flashmoe.apps.footer import footer_of
from flashmoe.apps.opening import open_engine
from flashmoe.apps.plurals import counted
from flashmoe.apps.request import Request
from flashmoe.apps.routing_log import Header, RoutingWriter
from flashmoe.apps.terminal import end_line, note, show_aside, take_interrupts, write
from flashmoe.engine import Engine
from flashmoe.errors import FlashMoeError
from flashmoe.model.observer import Observer, Phase
from flashmoe.quant import Array
from flashmoe.session import Session
from flashmoe.snapshot import destination
from flashmoe.step import Step
from flashmoe.turn import Opening

INTERRUPTED = 130
"""Exit code of a reply that Ctrl-C ended: 128 and the signal's number."""


@dataclass
class _Reply:
    """What has come of the reply so far."""

    load_ms: float
    steps: list[Step] = field(default_factory=list)
    finish: str = "interrupt"

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)


class _Onlookers(Observer):
    """Passes on to the clock and the routing log, whichever there are."""

    def __init__(self, clock: timing.ReplyClock | None, log: RoutingWriter | None) -> None:
        self.clock = clock
        self.log = log
        self._all: list[Observer] = [one for one in (clock, log) if one is not None]

    def begin(self) -> None:
        for one in self._all:
            one.begin()

    def routed(self, layer: int, ids: Array) -> None:
        for one in self._all:
            one.routed(layer, ids)

    def ended(self, layer: int, phase: Phase) -> None:
        for one in self._all:
            one.ended(layer, phase)

    def end_prompt(self) -> None:
        """The first token is there."""
        if self.clock is not None:
            self.clock.end_prompt()
        if self.log is not None:
            self.log.part = "decode"


def run(request: Request) -> int:
    """Reply to a prompt; returns the exit code."""
    take_interrupts()
    began = time.perf_counter()
    if request.files.save is not None:
        destination(request.files.save)
    with ExitStack() as stack:
        log = None
        if request.files.trace_out is not None:
            log = RoutingWriter(request.files.trace_out)
            stack.callback(log.close)
        onlookers = _Onlookers(timing.ReplyClock() if request.report.timing else None, log)
        engine = stack.enter_context(
            open_engine(
                request.store,
                request.limits,
                request.runtime,
                request.kernels,
                request.prefix_cache,
                onlookers,
                grammars=bool(request.prompt.tools),
            )
        )
        reply = _Reply((time.perf_counter() - began) * 1e3)
        session, asked = _begin(engine, request)
        if log is not None:
            log.start(_header(engine))
        try:
            # What reads a JSON object from standard error wants nothing before it
            with progress.prompt_shown(plain=not request.report.json) as told:
                sampling = engine.sampling(**request.sampling)
                steps = session.generate(
                    asked.ids,
                    sampling,
                    marks=asked.marks,
                    guide=asked.guide,
                    on_progress=told,
                )
                _stream(steps, reply, onlookers)
        except FlashMoeError:
            end_line(reply.text)
            raise
        end_line(reply.text)
        if reply.finish == "interrupt" and not reply.steps:
            note(_interrupted(engine, session, len(asked.ids)))
        try:
            if request.files.save is not None:
                session.save(request.files.save)
        finally:
            engine.keep_profile()  # what there is to say of it comes before the footer
            # The footer has the peak of saving in it, and is due where that failed
            _tell(engine, request, reply, onlookers.clock)
    return INTERRUPTED if reply.finish == "interrupt" else 0


def _header(engine: Engine) -> Header:
    shape = engine.shape
    records = tuple(layer.layout.record_bytes for layer in engine.store.manifest.layers)
    experts = shape.experts
    return Header(shape.layers, experts.count, experts.top_k, records, engine.plan.slots)


def _begin(engine: Engine, request: Request) -> tuple[Session, Opening]:
    """The timeline, and what it goes on with."""
    session = engine.session()
    if request.files.load is not None:
        session.load(request.files.load)
        return session, next_turn(engine, request.prompt, session.ids)
    if request.prompt.tools and engine.syntax.calls is None:
        note(
            "calls are not bound to the schemas of --tools: this chat template writes them in a "
            "form that is not read here"
        )
    return session, opening(engine, request.prompt)


def _interrupted(engine: Engine, session: Session, prompt_tokens: int) -> str:
    """What an interrupted prompt has come to."""
    told = f"interrupted: the timeline has {counted(len(session.ids), 'token')}"
    told += f", of a prompt of {prompt_tokens}"
    return told if engine.prefixes is None else f"{told}; the prefix cache has them"


def _stream(steps: Iterator[Step], reply: _Reply, onlookers: _Onlookers) -> None:
    """Write the reply as it comes, until it ends or Ctrl-C ends it."""
    try:
        for step in steps:
            if not reply.steps:
                onlookers.end_prompt()
            reply.steps.append(step)
            write(step.text)
            reply.finish = step.finish_reason or reply.finish
    except KeyboardInterrupt:
        reply.finish = "interrupt"
        if not reply.steps:
            onlookers.end_prompt()


def _tell(engine: Engine, request: Request, reply: _Reply, clock: timing.ReplyClock | None) -> None:
    """Everything on standard error after the reply; the footer comes last."""
    if clock is not None:
        on_gpu = engine.kernels.device is not None
        show_aside(timing.table(clock, engine.shape.mixers, reply.steps, on_gpu=on_gpu))
    written = None
    if engine.prefixes is not None:
        engine.prefixes.flush()
        written = engine.prefixes.written_bytes
    footer = footer_of(engine, reply.steps, reply.load_ms, reply.finish, written)
    logprobs = _logprobs(engine, reply.steps)
    drives = drives_of(engine) if request.runtime.store_dirs else []
    if request.report.json:
        more = {"logprobs": logprobs} if "logprobs" in request.sampling else {}
        note(footer.to_json(**more, **({"drives": drives} if drives else {})))
        return
    for entry in logprobs:
        others = "  ".join(f"{one['token']!r} {one['logprob']:.3f}" for one in entry["top"])
        note(f"{entry['token']!r} {entry['logprob']:.3f}  {others}".rstrip())
    for line in drive_lines(drives):
        note(line)
    note(footer.line())


def _logprobs(engine: Engine, steps: list[Step]) -> list[dict[str, Any]]:
    """Each token, its log-probability and the likeliest ones in its place, where asked for."""

    def entry(number: int, logprob: float) -> dict[str, Any]:
        return {"id": number, "token": engine.tokenizer.decode([number]), "logprob": logprob}

    return [
        {**entry(step.id, step.logprob), "top": [entry(*other) for other in step.top_logprobs]}
        for step in steps
        if step.logprob is not None
    ]
