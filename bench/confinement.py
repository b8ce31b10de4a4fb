"""A memory cgroup for other programs: the limit that both sides of a comparison run under.

Owns one cgroup, of version 1 or 2, whichever has the memory controller here; the page cache of
what runs in it counts. Invariant: it is gone afterwards, and so is every process that was
started in it, whatever ended the bench. Nothing else is ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
PATIENCE_S = 10.0
ENTER = 'echo $$ > "$0" && exec "$@"'


class Confinement:
    """Runs commands within ``limit_bytes`` of memory, or without a limit where that is None."""

    def __init__(self, limit_bytes: int | None, *, v1: Path = V1, v2: Path = V2) -> None:
        self.limit_bytes = limit_bytes
        self._v1, self._v2 = v1, v2
        self._group: Path | None = None
        self._running: subprocess.Popen[str] | None = None

    def __enter__(self) -> Confinement:
        if self.limit_bytes is not None:
            try:
                self._group = self._made(self.limit_bytes)
            except OSError as error:
                sys.exit(
                    f"error: no memory cgroup can be made ({error}): run as root where a memory "
                    "controller is mounted, or leave out --ram"
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_all()
        if self._group is not None:
            self._group.rmdir()
            self._group = None

    def run(self, command: list[str]) -> tuple[int, str]:
        """Exit code (negative: a signal) and stdout of a command; its stderr is ours."""
        if self._group is not None:
            command = ["/bin/sh", "-c", ENTER, str(self._group / "cgroup.procs"), *command]
        # A session of its own: Ctrl-C comes here first, and what was started is ended in order.
        self._running = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            output, _ = self._running.communicate()
        except BaseException:
            self._end_all()
            raise
        code = self._running.returncode
        self._running = None
        return code, output

    def _made(self, limit_bytes: int) -> Path:
        name = f"flashmoe-bench-{os.getpid()}"
        if (self._v1 / "memory.limit_in_bytes").exists():
            group = self._v1 / name
            group.mkdir()
            (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
            swap = group / "memory.memsw.limit_in_bytes"  # memory and swap together
            if swap.exists():
                swap.write_text(str(limit_bytes))
            return group
        if "memory" not in (self._v2 / "cgroup.subtree_control").read_text().split():
            (self._v2 / "cgroup.subtree_control").write_text("+memory")
        group = self._v2 / name
        group.mkdir()
        (group / "memory.max").write_text(str(limit_bytes))
        if (group / "memory.swap.max").exists():
            (group / "memory.swap.max").write_text("0")
        return group

    def _end_all(self) -> None:
        """End what :meth:`run` started, and all that runs in the group."""
        if self._running is not None and self._running.poll() is None:
            self._running.send_signal(signal.SIGINT)  # so that it ends what it started
            try:
                self._running.wait(PATIENCE_S / 2)
            except subprocess.TimeoutExpired:
                self._running.kill()
                self._running.wait()
        self._running = None
        end = time.monotonic() + PATIENCE_S
        while self._group is not None and (pids := self._inside(self._group)):
            if time.monotonic() > end:
                raise TimeoutError(f"{pids} in {self._group} do not end")
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # ended by itself
            time.sleep(0.05)

    @staticmethod
    def _inside(group: Path) -> list[int]:
        return [int(line) for line in (group / "cgroup.procs").read_text().split()]
