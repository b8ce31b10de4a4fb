"""Many clients at once, of whom some go away, some do not read, and some send nonsense.

    python bench/serve_load.py --minutes 10 --clients 64            # serves the demo itself
    python bench/serve_load.py --url http://127.0.0.1:8080 --model store

What it checks: every reply belongs to its request (each asks for a word of its own, to which the
answer is bound) and comes once; nobody who waits is left without an answer; every error has its
API's shape and a status that was to be expected; the peak of the server's memory stays within its
budget, and from the time when it is warm to the end what is resident grows by ``--growth`` at the
most; all that clients had taken is given back; and the server then replies, and ends with 0. A
table, a verdict, and a JSON object as the last line; exit code 1 where anything failed. A server
takes a few minutes to get warm: in less it grows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from serve_clients import Client, Report, until_idle

WARM, LAST = (0.3, 0.45), 0.85
"""Shares of the time: the resident memory within the one is compared with that behind the other."""

MiB = 1 << 20


@dataclass
class Memory:
    """The server's figures, read again and again."""

    budget_bytes: int = 0
    peak_bytes: int = 0
    resident: list[tuple[float, int]] = field(default_factory=list)

    def look(self, at: float, now: dict[str, float]) -> None:
        """Note the figures of this moment, in seconds since the start."""
        self.budget_bytes = int(now['flashmoe_memory_bytes{part="budget"}'])
        self.peak_bytes = int(now["flashmoe_peak_resident_bytes"])
        self.resident.append((at, int(now["flashmoe_resident_bytes"])))

    def growth(self) -> tuple[int, int] | None:
        """Resident bytes once warm and at the end, medians; None where one was never seen."""
        whole = max((at for at, _ in self.resident), default=0.0) or 1.0
        warm = [size for at, size in self.resident if WARM[0] <= at / whole <= WARM[1]]
        last = [size for at, size in self.resident if at / whole >= LAST]
        if not warm or not last:
            return None
        return int(statistics.median(warm)), int(statistics.median(last))

    def check(self, report: Report, most_bytes: float) -> None:
        """Faults where memory has grown or passed its budget."""
        grown = self.growth()
        if grown is None:
            report.fault("memory was not seen often enough to tell whether it grows")
        elif grown[1] - grown[0] > most_bytes:
            report.fault(f"memory has grown from {grown[0]} to {grown[1]} bytes")
        if self.peak_bytes > self.budget_bytes:
            report.fault(f"the peak is {self.peak_bytes} bytes, the budget {self.budget_bytes}")


def figures(text: str) -> dict[str, float]:
    """What ``/metrics`` says, by name and labels."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#")
    return {name: float(value) for name, _, value in lines}


async def load(
    url: str, model: str, *, clients: int, seconds: float, seed: int = 0
) -> tuple[Report, Memory]:
    """Have so many clients at a server for so long."""
    report, memory, began = Report(), Memory(), time.monotonic()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False) as http:

        async def client(number: int) -> None:
            one = Client(http, model, random.Random(f"{seed} {number}"), report)
            while time.monotonic() - began < seconds:
                await one.once()

        async def watch() -> None:
            while True:
                now = figures((await http.get("/metrics")).text)
                memory.look(time.monotonic() - began, now)
                await asyncio.sleep(max(seconds / 200, 0.1))

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(client(number) for number in range(clients)))
        report.seconds = time.monotonic() - began
        if watching.done():
            report.fault(f"the figures could not be read: {watching.exception()!r}")
        watching.cancel()
        if not await until_idle(http, figures):
            report.fault("the server still holds what its clients have left")
        memory.look(time.monotonic() - began, figures((await http.get("/metrics")).text))
        if (await http.get("/health")).json()["status"] != "ok":
            report.fault("the server is not well")
        before = report.replies
        await Client(http, model, random.Random(seed), report).whole()
        if report.replies == before:
            report.fault("the server does not reply any more")
    return report, memory


def table(report: Report, memory: Memory) -> str:
    """What was done and what came of it, for people."""
    grown = memory.growth() or (0, 0)
    rows = [("seconds", f"{report.seconds:.0f}"), ("replies, each its own", str(report.replies))]
    rows += [(f"  {name.replace('_', ' ')}", str(count)) for name, count in report.done.items()]
    rows += [(f"status {code}", str(count)) for code, count in sorted(report.statuses.items())]
    rows += [
        ("resident, warm", f"{grown[0] / MiB:.1f} MiB"),
        ("resident, end", f"{grown[1] / MiB:.1f} MiB"),
        ("growth", f"{(grown[1] - grown[0]) / MiB:+.1f} MiB"),
        ("peak", f"{memory.peak_bytes / MiB:.1f} MiB"),
        ("budget", f"{memory.budget_bytes / MiB:.1f} MiB"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value:>12}" for name, value in rows]
    lines += [f"fault: {fault}" for fault in report.faults]
    count = len(report.faults)
    failed = f"FAILED, {count} fault{'s' * (count != 1)}"
    lines.append(f"verdict: {failed if count else 'passed'}")
    return "\n".join(lines)


def to_json(report: Report, memory: Memory) -> dict[str, Any]:
    """The same for programs."""
    grown = memory.growth()
    return {
        "passed": not report.faults,
        "seconds": round(report.seconds, 1),
        "replies": report.replies,
        "done": dict(report.done),
        "statuses": {str(status): count for status, count in sorted(report.statuses.items())},
        "faults": report.faults,
        "resident_bytes_warm": grown and grown[0],
        "resident_bytes_end": grown and grown[1],
        "peak_bytes": memory.peak_bytes,
        "budget_bytes": memory.budget_bytes,
    }


def served(flags: list[str]) -> tuple[subprocess.Popen[bytes], str]:
    """``flashmoe serve`` as a process, and its address; what else it says goes to ours."""
    code = "import sys; from flashmoe.apps import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", *flags, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"at (http://[^\s,]+),", line.decode()):
            return process, found[1]
        sys.stderr.write(line.decode())
    raise SystemExit(f"the server did not start: {process.wait()}")


def ended(process: subprocess.Popen[bytes], report: Report) -> None:
    """End the server; a fault where it does not end well, or has met with an error in between."""
    process.terminate()
    try:
        _, said = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        report.fault("the server did not end within 60 s")
        return
    if process.returncode != 0:
        report.fault(f"the server ended with {process.returncode}")
    for line in said.decode(errors="replace").splitlines():
        sys.stderr.write(f"server: {line}\n")
        if line.startswith(("error: ", "Traceback", "Exception", "ASGI")):
            report.fault(f"the server said: {line}")


def main() -> int:
    """Run it; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", help="a server that runs; else the demo is served")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--growth", type=float, default=16, help="MiB that memory may grow by")
    given = parser.parse_args()
    process, url = None, given.url
    if url is None:
        process, url = served(["demo", "--ram", "600MiB", "--no-profile"])
    run = load(url, given.model, clients=given.clients, seconds=given.minutes * 60, seed=given.seed)
    try:
        report, memory = asyncio.run(run)
        memory.check(report, given.growth * MiB)
    finally:
        if process is not None and sys.exc_info()[0] is not None:
            process.kill()
    if process is not None:
        ended(process, report)
    print(table(report, memory))
    print(json.dumps(to_json(report, memory)))
    return 1 if report.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
