"""A shell for the model, behind a yes for every single command.

Owns the running of a command within bounds of time and output, and its end with all that it has
started. Invariant: nothing runs that was not confirmed as it stands; a command has no input and no
terminal, and neither it nor its process group outlives its call.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from flashmoe.apps.chat.tools import Refusal, Tool, bounded, text_of

TIMEOUT_S = 60.0
OUTPUT_CHARACTERS = 12_000
"""What the model is shown of a command's output, some 3,000 tokens."""

KEPT_BYTES = 1 << 20
"""What is kept of it meanwhile; a command that writes more is stopped."""

LINGER_S = 0.2
"""So long is listened for what others still write when the shell itself has ended."""

_READ_BYTES = 1 << 16

_PLAIN = {"TERM": "dumb", "NO_COLOR": "1", "PAGER": "cat", "GIT_PAGER": "cat"}
"""Nobody sees colours, and a pager would wait for keys."""


@dataclass
class _Output:
    """What a command has written, up to the limit."""

    raw: bytearray = field(default_factory=bytearray)
    ended: bool = False

    @property
    def full(self) -> bool:
        return len(self.raw) >= KEPT_BYTES


def run_command(command: str, environment: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> str:
    """Run a command with ``/bin/sh`` and tell how it ended and what it wrote, errors included."""
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environment, **_PLAIN},
            start_new_session=True,  # a group to end, and no terminal to ask for passwords on
        )
    except (OSError, ValueError) as error:
        raise Refusal(f"the command cannot be started: {error}") from error
    output = _Output()
    try:
        timed_out = _listen(process, output, timeout_s)
    finally:
        _end(process)
    text = output.raw.decode("utf-8", errors="replace")
    return f"{_ending(process, output, timed_out, timeout_s)}\n{bounded(text, OUTPUT_CHARACTERS)}"


def _listen(process: subprocess.Popen[bytes], output: _Output, timeout_s: float) -> bool:
    """Collect what is written until the shell has ended; returns whether time ran out first."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not output.full and not output.ended and process.poll() is None:
            if time.monotonic() >= deadline:
                return True
            _take(selector, process.stdout, output, LINGER_S)
        until = time.monotonic() + LINGER_S
        while not output.full and not output.ended and time.monotonic() < until:
            _take(selector, process.stdout, output, until - time.monotonic())
    if output.ended:  # it has closed its output, and may go on in silence
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0.0))
        return process.poll() is None
    return False


def _take(
    selector: selectors.BaseSelector, stream: IO[bytes], output: _Output, wait_s: float
) -> None:
    if selector.select(max(wait_s, 0.0)):
        some = os.read(stream.fileno(), _READ_BYTES)
        output.raw += some
        output.ended = not some


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command and all of its group, whatever happened."""
    with suppress(ProcessLookupError, PermissionError):  # macOS says so of a group that is gone
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _ending(
    process: subprocess.Popen[bytes], output: _Output, timed_out: bool, timeout_s: float
) -> str:
    if timed_out:
        return f"[stopped after {timeout_s:g} seconds]"
    if output.full:
        return f"[stopped after {KEPT_BYTES} bytes of output]"
    code = process.returncode
    return f"[ended by signal {-code}]" if code < 0 else f"[exit code {code}]"


def shell(confirm: Callable[[str], bool], environment: Mapping[str, str]) -> Tool:
    """The tool; ``confirm`` asks a person whether a command may run, and blocks until they say."""

    def use(arguments: Mapping[str, Any]) -> str:
        command = text_of(arguments, "command")
        if not command.strip() or "\0" in command:
            raise Refusal("the command is empty, or has a NUL in it")
        if not confirm(command):
            raise Refusal("the user has refused this command; do not repeat it, ask what to do")
        return run_command(command, environment)

    return Tool.of(
        "shell",
        "Run a command with /bin/sh in the working directory. The user confirms each one. It has "
        f"no input and {TIMEOUT_S:g} seconds.",
        {"command": {"type": "string"}},
        use=use,
        note="asks before each command",
    )
