"""The demo, served by ``flashmoe serve`` in a process of its own on a free port.

Owns the start and the end of that process; what is asked of it is the tests'.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_READY = re.compile(r"serving \S+ at (http://\S+?),")


@contextmanager
def served(log: Path, *flags: str) -> Iterator[str]:
    """The address of a server of the demo; it is stopped as people stop one, and ends well."""
    main = "from flashmoe.apps import main; raise SystemExit(main())"
    command = [sys.executable, "-c", main, "serve", "demo", "--port", "0", *flags]
    with open(log, "w+", encoding="utf-8") as written:
        process = subprocess.Popen(command, stdout=written, stderr=written)
        try:
            yield _address(process, log)
        finally:
            process.terminate()
            code = process.wait(timeout=120)
    assert code == 0, log.read_text(encoding="utf-8")


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Waits until the server says where it is."""
    while True:
        found = _READY.search(log.read_text(encoding="utf-8"))
        if found:
            return found[1]
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"the server has ended: {log.read_text(encoding='utf-8')}")
