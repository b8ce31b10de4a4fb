"""A terminal with a person at it: a process on a pseudo-terminal, and what its window shows."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pexpect
import pyte

MAIN = "import sys; from flashmoe.apps.cli import main; sys.exit(main())"
PATIENCE_S = 120.0


class Terminal:
    """``flashmoe`` with ``arguments`` on a terminal, its conversations below ``home``.

    ``first`` is code that runs before the command does.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        home: Path,
        *,
        first: str = "",
        columns: int = 100,
        rows: int = 30,
        **environment: str,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=5000)
        # What the terminal answers when it is asked where the cursor is
        self.screen.write_process_input = lambda data: self.process.send(data)
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)
        kept = {"XDG_DATA_HOME": str(home / "data"), "XDG_CACHE_HOME": str(home / "cache")}
        self.process = pexpect.spawn(
            sys.executable,
            ["-c", f"{first}\n{MAIN}", *arguments],
            env={**os.environ, "TERM": "xterm-256color", **kept, **environment},
            dimensions=(rows, columns),
            cwd=str(home),
        )

    @property
    def text(self) -> str:
        """All that can be seen by scrolling up."""
        above = [
            "".join(line[column].data for column in range(self.screen.columns))
            for line in self.screen.history.top
        ]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip()

    def until(self, text: str, times: int = 1) -> str:
        """Wait for a text to be seen so often; returns all that is."""
        end = time.monotonic() + PATIENCE_S
        while self.text.count(text) < times:
            assert time.monotonic() < end, f"no {text!r} in:\n{self.text}"
            if not self._read():
                assert self.text.count(text) >= times, f"ended without {text!r}:\n{self.text}"
        return self.text

    def type(self, keys: str) -> None:
        self.process.send(keys)

    def end(self) -> int:
        """Wait for the process to end; returns its exit code."""
        end = time.monotonic() + PATIENCE_S
        while self._read():
            assert time.monotonic() < end, f"does not end:\n{self.text}"
        self.process.close()
        return int(self.process.exitstatus if self.process.exitstatus is not None else -1)

    def close(self) -> None:
        self.process.close(force=True)

    def _read(self) -> bool:
        """Take what has been written; False where the process has ended."""
        try:
            data = self.process.read_nonblocking(1 << 16, timeout=0.05)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True
