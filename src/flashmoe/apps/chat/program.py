"""``chat``: a conversation with a store, on a terminal or through pipes.

Owns the order of things: what is asked for, the conversation's lock, the engine, then line by
line until there is no more. On a terminal a refusal is a word and the chat goes on; through pipes
it ends the command, as in ``run``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from flashmoe.apps import progress
from flashmoe.apps.chat.calculator import CALCULATOR
from flashmoe.apps.chat.desk import Desk, check_tools
from flashmoe.apps.chat.face import Face
from flashmoe.apps.chat.files import file_reader
from flashmoe.apps.chat.plain import Plain
from flashmoe.apps.chat.request import ChatRequest
from flashmoe.apps.chat.shelf import Kept, Shelf
from flashmoe.apps.chat.shell import shell
from flashmoe.apps.chat.talk import Talk
from flashmoe.apps.chat.tools import Tool, Toolbox, defined
from flashmoe.apps.chat.transcript import Transcript
from flashmoe.apps.footer import footer_of
from flashmoe.apps.opening import open_engine
from flashmoe.apps.places import data_directory
from flashmoe.apps.run import INTERRUPTED
from flashmoe.apps.terminal import take_interrupts
from flashmoe.engine import Engine
from flashmoe.errors import FlashMoeError, InputError
from flashmoe.options import Sampling
from flashmoe.session import Session
from flashmoe.step import Step
from flashmoe.turn import Opening, Reply, Turn


def chat(request: ChatRequest) -> int:
    """Talk until there is no more to say; returns the exit code."""
    take_interrupts()
    on_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    face = _screen() if on_terminal else Plain()
    with _keys_kept() if on_terminal else nullcontext():
        return _chat(request, face, on_terminal=on_terminal)


def _chat(request: ChatRequest, face: Face, *, on_terminal: bool) -> int:
    toolbox = _toolbox(request, face, on_terminal=on_terminal)
    data = data_directory()
    shelf = None if data is None else Shelf(data / "sessions")
    began = time.perf_counter()
    with ExitStack() as stack:
        kept = _kept(request, shelf)
        if kept is not None:
            stack.enter_context(kept)
        engine = stack.enter_context(_engine(request, told=on_terminal))
        if toolbox.on:
            check_tools(engine)
        fresh = Transcript(request.store, request.system, request.thinking, sorted(toolbox.on))
        talk = _talk(engine, request, toolbox, fresh, (time.perf_counter() - began) * 1e3)
        # What every turn would be refused for is refused now
        Opening.of(engine, talk.turn({"role": "user", "content": "-"}))
        desk = Desk(engine, talk, shelf, face)
        if on_terminal:
            face.note(desk.greeting)
        if kept is not None:
            desk.open(kept, fresh=fresh)
        try:
            return _converse(desk, face, on_terminal=on_terminal)
        finally:
            _leave(desk, face)


def _engine(request: ChatRequest, *, told: bool) -> Engine:
    """The store, loaded; ``told`` says so meanwhile."""
    with progress.loading(request.store) if told else nullcontext():
        return open_engine(
            request.store,
            request.limits,
            request.runtime,
            request.kernels,
            request.prefix_cache,
            grammars=True,  # tools can be switched on at any time
        )


def _leave(desk: Desk, face: Face) -> None:
    try:
        desk.leave()
    except KeyboardInterrupt:
        face.note("stopped: what was said is kept, the model's state is not")


def _converse(desk: Desk, face: Face, *, on_terminal: bool) -> int:
    """Line by line to the end."""
    while True:
        try:
            line = face.line(desk.status, desk.names)
        except KeyboardInterrupt:
            return INTERRUPTED
        if line is None:
            return 0
        try:
            finish = desk.take(line)
        except FlashMoeError as error:
            if not on_terminal:
                raise
            face.note(f"error: {' '.join(str(error).split())}")
            continue
        except KeyboardInterrupt:
            finish = "interrupt"
        if finish is None:
            return 0
        if finish == "interrupt" and not on_terminal:
            return INTERRUPTED


def _keys_kept() -> AbstractContextManager[None]:
    """What is typed while no line is asked for is for the next one."""
    from flashmoe.apps.chat.editor import silent_keys

    return silent_keys()


def _screen() -> Face:
    from rich.console import Console

    from flashmoe.apps.chat.editor import Editor
    from flashmoe.apps.chat.screen import Screen
    from flashmoe.apps.terminal import note

    data = data_directory()
    history = None if data is None else data / "history"
    return Screen(Editor(history, note), Console(highlight=False))


def _toolbox(request: ChatRequest, face: Face, *, on_terminal: bool) -> Toolbox:
    """The tools that there are; those that need a person only where one is.

    Raises:
        InputError: one that there is not, or that needs a terminal.
    """
    tools: list[Tool] = [CALCULATOR, file_reader(Path.cwd())]
    if on_terminal:
        tools.append(shell(face.confirm, os.environ))
        tools += defined(request.tools, face.supply)
    elif request.tools:
        raise InputError(
            "--tools: you type the results of these tools, which takes a terminal; "
            "`flashmoe run --tools` shows the model's call"
        )
    elif "shell" in request.switched_on:
        raise InputError("--tool shell asks before each command, which takes a terminal")
    box = Toolbox.of(tools)
    for name in request.switched_on:
        box.switch(name, True)
    for tool in defined(request.tools, face.supply):
        box.switch(tool.name, True)
    return box


def _kept(request: ChatRequest, shelf: Shelf | None) -> Kept | None:
    if request.session is None:
        return None
    if shelf is None:
        raise InputError("--session: there is no place for it; set HOME or XDG_DATA_HOME")
    return shelf.open(request.session)


def _talk(
    engine: Engine, request: ChatRequest, toolbox: Toolbox, fresh: Transcript, load_ms: float
) -> Talk:
    session = engine.session()
    sampling: Mapping[str, Any] = request.sampling
    return Talk(
        session,
        partial(_begin, engine, session, engine.sampling(**sampling)),
        toolbox,
        partial(_figures, engine, load_ms),
        fresh,
        request.thinking_budget,
        engine.plan.context_tokens,
    )


def _begin(engine: Engine, session: Session, sampling: Sampling, turn: Turn, told: Any) -> Reply:
    return Reply(engine, session, turn, sampling, told)


def _figures(engine: Engine, load_ms: float, steps: list[Step], finish: str) -> str:
    return footer_of(engine, steps, load_ms, finish).line()
