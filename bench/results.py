"""Results of benches at rest: ``bench/results/<machine>.<commit>.json``, one file for both.

Owns the format. A file names the machine (no host name, no path), the commit and its date, and
has one entry a run: bench, date, arguments, figures. Runs of the same commit are appended.
Invariant: a file is whole or not there, and nothing in it is ever changed but by adding a run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "bench" / "results"
_SAFE = re.compile(r"[^a-z0-9]+")


class Machine(TypedDict):
    """What a result is of."""

    name: str
    processor: str
    cores: int
    memory_gib: int


class Run(TypedDict):
    """One run of one bench. ``figures`` are the bench's own JSON line."""

    bench: str
    date: str
    arguments: dict[str, Any]
    figures: dict[str, Any]


class Results(TypedDict):
    """A file. ``changed`` says that the sources were not those of the commit."""

    machine: Machine
    commit: str
    commit_date: str
    changed: bool
    runs: list[Run]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a bench whose results can be kept."""
    parser.add_argument("--save", action="store_true", help="add the figures to bench/results/")
    parser.add_argument("--machine", help="its name there (default: processor, cores, memory)")


def save_if_asked(
    given: argparse.Namespace, bench: str, figures: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """Keep the figures where ``--save`` was given."""
    if given.save:
        save(bench, figures, arguments, machine=machine(given.machine))


def save(
    bench: str,
    figures: dict[str, Any],
    arguments: dict[str, Any],
    *,
    machine: Machine,
    folder: Path = FOLDER,
) -> Path:
    """Add a run to the file of this machine and commit; ``arguments`` hold no paths."""
    commit, commit_date, changed = source()
    name = f"{machine['name']}.{commit}{'-changed' if changed else ''}.json"
    path = folder / name
    results: Results = {
        "machine": machine,
        "commit": commit,
        "commit_date": commit_date,
        "changed": changed,
        "runs": [],
    }
    if path.exists():
        results = load(path)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    results["runs"].append(
        {"bench": bench, "date": date, "arguments": arguments, "figures": figures}
    )
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def load(path: Path) -> Results:
    """One file."""
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    return results


def load_all(folder: Path = FOLDER) -> list[Results]:
    """Every file, oldest commit first."""
    found = [load(path) for path in folder.glob("*.json")]
    return sorted(found, key=lambda results: (results["commit_date"], results["changed"]))


def machine(name: str | None = None) -> Machine:
    """This machine; its name is made of the rest where none is given."""
    processor, cores = processor_name(), os.cpu_count() or 1
    gib = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    made = _SAFE.sub("-", f"{processor} {cores}c {gib}g".lower()).strip("-")
    return {"name": name or made, "processor": processor, "cores": cores, "memory_gib": gib}


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def source() -> tuple[str, str, bool]:
    """Commit, its date (ISO 8601, UTC), and whether anything that is built or run differs."""
    commit = _git("rev-parse", "--short=10", "HEAD")
    seconds = int(_git("show", "-s", "--format=%ct", "HEAD"))
    changed = _git("status", "--porcelain", "--", "src", "native", "bench/*.py", "CMakeLists.txt")
    return commit, datetime.fromtimestamp(seconds, UTC).isoformat(), bool(changed)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: results are kept by commit, and git says: {done.stderr.strip()}")
    return done.stdout.strip()
