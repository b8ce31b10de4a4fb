"""What this machine, and the control groups around this process, allow it to use.

Owns the questions to the operating system: how much memory there is, how much of it is free for
us, which limit binds, how much we occupy, and what we read from devices. Decides nothing
(``budget`` does). It is the only Python module that knows how Linux answers these; elsewhere it
falls back on POSIX. Every function takes the root of the file system, so that tests describe a
machine as a directory.

Invariant: a file that is missing, unreadable or malformed counts as "no such limit", never as
an error: a container may hide any of them.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")

_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 writes "no limit" as the largest page-aligned number; no machine has this much."""


@dataclass(frozen=True)
class Memory:
    """Memory in bytes, seen from this process.

    ``available_bytes`` can still be had without swapping. The two cgroup fields belong to the
    control group with the least headroom (None without any limit); page cache that the kernel
    would drop for us is not counted in ``cgroup_current_bytes``. ``own_bytes`` is what this
    process occupies already, which both headrooms have lost to it. ``binding`` names the limit
    that is reached first.
    """

    total_bytes: int
    available_bytes: int
    cgroup_limit_bytes: int | None
    cgroup_current_bytes: int | None
    binding: str
    own_bytes: int = 0

    @property
    def usable_bytes(self) -> int:
        """How large this process can become in all, what it occupies included."""
        headroom = self.available_bytes
        if self.cgroup_limit_bytes is not None:
            headroom = min(headroom, self.cgroup_limit_bytes - (self.cgroup_current_bytes or 0))
        return max(headroom, 0) + self.own_bytes


@dataclass(frozen=True)
class Strain:
    """How short of memory this process is, and what it has met of that since it began.

    ``headroom_bytes`` can still be had without swapping, the page cache that would be dropped
    for it included; ``free_bytes`` without dropping anything. ``stalled_us`` is the time in which
    some task of our control group (where it has none of its own: of the machine) waited for
    memory, by Linux's pressure stall information; it stands still where there is none, as the
    other figures do where a system does not tell. Faults that had to read a file, and what of
    this process lies in swap, are our own.
    """

    seconds: float
    headroom_bytes: int
    free_bytes: int
    stalled_us: int
    major_faults: int
    swapped_bytes: int


@dataclass(frozen=True)
class _Limit:
    name: str
    limit_bytes: int
    current_bytes: int
    cached_bytes: int  # not in current_bytes, but charged all the same

    @property
    def headroom_bytes(self) -> int:
        return self.limit_bytes - self.current_bytes


def available(root: Path = ROOT) -> Memory:
    """The memory that this process may use at this moment."""
    total, free, source = _machine(root)
    own = _status_bytes(root, "RssAnon") or 0
    limits = list(_limits(root))
    tightest = min(limits, key=lambda limit: limit.headroom_bytes, default=None)
    if tightest is None:
        return Memory(total, free, None, None, source, own)
    binding = tightest.name if tightest.headroom_bytes < free else source
    return Memory(total, free, tightest.limit_bytes, tightest.current_bytes, binding, own)


def strain(root: Path = ROOT) -> Strain:
    """A sample; takes about 0.2 ms."""
    import resource  # as in _peak_from_rusage

    info = _kibibyte_fields(root / "proc/meminfo")
    _, available, _ = _machine(root)
    limits = list(_limits(root))
    charged = (limit.headroom_bytes - limit.cached_bytes for limit in limits)
    return Strain(
        seconds=time.monotonic(),
        headroom_bytes=min([available, *(limit.headroom_bytes for limit in limits)]),
        free_bytes=min([info.get("MemFree", available), *charged]),
        stalled_us=_stalled_us(root),
        major_faults=resource.getrusage(resource.RUSAGE_SELF).ru_majflt,
        swapped_bytes=_status_bytes(root, "VmSwap") or 0,
    )


def release_freed() -> None:
    """Let the C library give memory that is freed, and that it has kept, back to the system."""
    with suppress(OSError, AttributeError):  # only glibc keeps much, and only it has this
        ctypes.CDLL(None).malloc_trim(0)


def _stalled_us(root: Path) -> int:
    """The total of the line ``some avg10=0.00 avg60=0.00 avg300=0.00 total=191280``."""
    for path in _pressure_files(root):
        for line in _text(path).splitlines():
            kind, *fields = line.split() or [""]
            for name, _, number in (field.partition("=") for field in fields):
                if kind == "some" and name == "total" and _is_number(number):
                    return int(number)
    return 0


def _pressure_files(root: Path) -> Iterator[Path]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        match line.split(":", 2):
            case ["0", "", path] if path != "/":
                for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                    for group, _ in _ancestry(root / mount, path):
                        yield group / "memory.pressure"
    yield root / "proc/pressure/memory"


def resident_bytes(root: Path = ROOT) -> int:
    """Resident memory of this process (where the system does not tell: its peak)."""
    return _status_bytes(root, "VmRSS") or _peak_from_rusage()


def peak_resident_bytes(root: Path = ROOT) -> int:
    """The largest resident memory this process has had.

    Linux's VmHWM starts anew with each program; getrusage there inherits the parent's peak.
    """
    return _status_bytes(root, "VmHWM") or _peak_from_rusage()


def device_read_bytes(root: Path = ROOT) -> int | None:
    """Bytes that this process had read from devices so far, None where the system does not tell.

    What the page cache had is not in it; what was read ahead for us is.
    """
    for line in _text(root / "proc/self/io").splitlines():
        match line.split():
            case ["read_bytes:", number] if _is_number(number):
                return int(number)
    return None


def _peak_from_rusage() -> int:
    import resource  # does not exist on Windows, where this package is not built

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _machine(root: Path) -> tuple[int, int, str]:
    """Total bytes, available bytes, and what the second number is."""
    info = _kibibyte_fields(root / "proc/meminfo")
    if "MemTotal" in info and "MemAvailable" in info:
        return info["MemTotal"], info["MemAvailable"], "free memory"
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, total // 2, "half of all memory (this system does not tell what is free)"


def _status_bytes(root: Path, field: str) -> int | None:
    return _kibibyte_fields(root / "proc/self/status").get(field)


def _kibibyte_fields(path: Path) -> dict[str, int]:
    """The lines ``Name:   123 kB`` of a proc file, in bytes."""
    fields = {}
    for line in _text(path).splitlines():
        match line.split():
            case [name, number, "kB"] if _is_number(number):
                fields[name.rstrip(":")] = int(number) * 1024
    return fields


def _limits(root: Path) -> Iterator[_Limit]:
    """Every memory limit on the groups of this process and on all their ancestors."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        match line.split(":", 2):
            case ["0", "", path]:
                for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                    yield from _limits_v2(root / mount, path)
            case [_, controllers, path] if "memory" in controllers.split(","):
                yield from _limits_v1(root / "sys/fs/cgroup/memory", path)


def _limits_v2(mount: Path, path: str) -> Iterator[_Limit]:
    for group, name in _ancestry(mount, path):
        current = _number(group / "memory.current")
        if current is None:
            continue
        cached = min(_page_cache_bytes(group, ""), current)
        for file in ("memory.max", "memory.high"):
            limit = _number(group / file)
            if limit is not None:
                yield _Limit(f"cgroup {file} of {name}", limit, current - cached, cached)


def _limits_v1(mount: Path, path: str) -> Iterator[_Limit]:
    for group, name in _ancestry(mount, path):
        current = _number(group / "memory.usage_in_bytes")
        limit = _number(group / "memory.limit_in_bytes")
        if current is not None and limit is not None and limit < _UNLIMITED_BYTES:
            cached = min(_page_cache_bytes(group, "total_"), current)
            name = f"cgroup memory.limit_in_bytes of {name}"
            yield _Limit(name, limit, current - cached, cached)


def _ancestry(mount: Path, path: str) -> Iterator[tuple[Path, str]]:
    """The group at ``path`` and its ancestors, as (directory, name in messages).

    Inside a container the mount may begin at our own group while ``path`` is the host's: the
    parts that do not exist below the mount yield nothing, and the mount itself comes last. A
    path that leaves the namespace (``/../x``) tells only of the mount.
    """
    parts = [part for part in PurePosixPath(path).parts if part != "/"]
    if ".." in parts:
        parts = []
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth]), "/" + "/".join(parts[:depth])


def _page_cache_bytes(group: Path, prefix: str) -> int:
    """Page cache charged to a group that the kernel reclaims before anything else fails."""
    wanted = {f"{prefix}inactive_file", f"{prefix}active_file"}
    found = 0
    for line in _text(group / "memory.stat").splitlines():
        match line.split():
            case [name, number] if name in wanted and _is_number(number):
                found += int(number)
    return found


def _number(path: Path) -> int | None:
    """The number in a control file; None where there is none ("max")."""
    text = _text(path).strip()
    return int(text) if _is_number(text) else None


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 20  # what 64 bits can hold


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
