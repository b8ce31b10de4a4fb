"""Memory limits read from machines that are described as directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmoe.stream import memory

GIB = 1 << 30
MIB = 1 << 20


def machine(root: Path, files: dict[str, str], *, total: int = 64, free: int = 32) -> Path:
    """A machine of ``total`` GiB with ``free`` GiB available; this process has 1 GiB."""
    described = {
        "proc/meminfo": (
            f"MemTotal: {total << 20} kB\nMemFree: 5 kB\nMemAvailable: {free << 20} kB\n"
        ),
        "proc/self/status": (
            "Name:\tpython\nVmHWM:\t 3145728 kB\nVmRSS:\t 2097152 kB\nRssAnon:\t 1048576 kB\n"
        ),
        **files,
    }
    for name, text in described.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(
    directory: str, limits: dict[str, str], *, current: int, cache: int = 0
) -> dict[str, str]:
    """The files of one v2 control group; sizes in bytes, half of the cache active."""
    stat = f"anon 7\nfile {cache}\ninactive_file {cache // 2}\nactive_file {cache - cache // 2}\n"
    files = {"memory.current": f"{current}\n", "memory.stat": stat, **limits}
    return {f"sys/fs/cgroup{directory}/{name}": text for name, text in files.items()}


def test_without_control_groups_free_memory_binds(tmp_path: Path) -> None:
    found = memory.available(machine(tmp_path, {}))
    assert found == memory.Memory(64 * GIB, 32 * GIB, None, None, "free memory", GIB)
    assert found.usable_bytes == 33 * GIB


def test_v2_the_ancestor_with_the_least_headroom_binds(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/user/app\n",
        **group("/user/app", {"memory.max": f"{20 * GIB}\n", "memory.high": "max\n"}, current=GIB),
        **group("/user", {"memory.max": "max\n", "memory.high": f"{10 * GIB}\n"}, current=6 * GIB),
        **group("", {"memory.max": "max\n"}, current=30 * GIB),
    }
    found = memory.available(machine(tmp_path, files))
    assert found.binding == "cgroup memory.high of /user"
    assert (found.cgroup_limit_bytes, found.cgroup_current_bytes) == (10 * GIB, 6 * GIB)
    assert found.usable_bytes == 5 * GIB


def test_v2_a_container_sees_its_own_group_as_the_mount(tmp_path: Path) -> None:
    for path in ("/", "/docker/0123abcd", "/../sibling"):
        files = {
            "proc/self/cgroup": f"0::{path}\n",
            **group("", {"memory.max": f"{4 * GIB}\n"}, current=2 * GIB),
        }
        found = memory.available(machine(tmp_path, files))
        assert found.binding == "cgroup memory.max of /"
        assert found.usable_bytes == 3 * GIB


def test_page_cache_charged_to_the_group_is_not_lost(tmp_path: Path) -> None:
    limits = {"memory.max": f"{4 * GIB}\n"}
    files = {
        "proc/self/cgroup": "0::/\n",
        **group("", limits, current=4 * GIB - MIB, cache=3 * GIB),
    }
    found = memory.available(machine(tmp_path, files))
    assert found.cgroup_current_bytes == GIB - MIB


def test_a_loose_limit_does_not_bind(tmp_path: Path) -> None:
    limits = {"memory.max": f"{50 * GIB}\n"}
    files = {"proc/self/cgroup": "0::/\n", **group("", limits, current=2 * GIB)}
    found = memory.available(machine(tmp_path, files))
    assert found.binding == "free memory"
    assert found.usable_bytes == 33 * GIB
    assert found.cgroup_limit_bytes == 50 * GIB


def test_v1_limits_count_and_its_unlimited_does_not(tmp_path: Path) -> None:
    v1 = "sys/fs/cgroup/memory"
    files = {
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/jobs/one\n1:cpu:/\n0::/\n",
        f"{v1}/jobs/one/memory.limit_in_bytes": f"{8 * GIB}\n",
        f"{v1}/jobs/one/memory.usage_in_bytes": f"{6 * GIB}\n",
        f"{v1}/jobs/one/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
        f"{v1}/memory.limit_in_bytes": "9223372036854771712\n",
        f"{v1}/memory.usage_in_bytes": f"{40 * GIB}\n",
    }
    found = memory.available(machine(tmp_path, files))
    assert found.binding == "cgroup memory.limit_in_bytes of /jobs/one"
    assert (found.cgroup_limit_bytes, found.cgroup_current_bytes) == (8 * GIB, 5 * GIB)
    unlimited = files | {f"{v1}/jobs/one/memory.limit_in_bytes": "9223372036854771712\n"}
    assert memory.available(machine(tmp_path, unlimited)).cgroup_limit_bytes is None


def test_a_group_already_above_its_limit_leaves_what_we_have(tmp_path: Path) -> None:
    limits = {"memory.high": f"{GIB}\n"}
    files = {"proc/self/cgroup": "0::/\n", **group("", limits, current=3 * GIB)}
    assert memory.available(machine(tmp_path, files)).usable_bytes == GIB


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.sampled_from(["proc/self/cgroup", "memory.max", "memory.current", "memory.stat"]),
    st.binary(),
)
def test_malformed_files_are_no_limit_and_no_error(tmp_path: Path, name: str, text: bytes) -> None:
    limits = {"memory.max": f"{4 * GIB}\n"}
    files = {"proc/self/cgroup": "0::/\n", **group("", limits, current=2 * GIB)}
    root = machine(tmp_path, files)
    broken = root / (name if "/" in name else f"sys/fs/cgroup/{name}")
    broken.write_bytes(text)
    found = memory.available(root)
    assert found.total_bytes == 64 * GIB
    assert found.usable_bytes <= 33 * GIB


def test_resident_and_peak_come_from_the_status_file(tmp_path: Path) -> None:
    root = machine(tmp_path, {})
    assert memory.resident_bytes(root) == 2 * GIB
    assert memory.peak_resident_bytes(root) == 3 * GIB


def test_a_system_without_proc_still_answers(tmp_path: Path) -> None:
    found = memory.available(tmp_path)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.total_bytes == total
    assert found.usable_bytes == total // 2
    assert found.binding.startswith("half of all memory")
    assert memory.resident_bytes(tmp_path) == memory.peak_resident_bytes(tmp_path) > MIB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_this_process_on_this_machine() -> None:
    found = memory.available()
    assert 0 < found.usable_bytes <= found.total_bytes
    before = memory.resident_bytes()
    block = bytearray(64 * MIB)
    assert memory.resident_bytes() - before > 48 * MIB
    assert memory.peak_resident_bytes() >= before + 48 * MIB
    del block


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("rchar: 9\nread_bytes: 4096\nwrite_bytes: 1\n", 4096),
        ("read_bytes: 0\n", 0),
        ("read_bytes: many\n", None),
        ("rchar: 9\n", None),
        ("", None),
    ],
)
def test_bytes_from_devices_are_those_that_the_system_tells(tmp_path, text, found):
    root = machine(tmp_path, {"proc/self/io": text})
    assert memory.device_read_bytes(root) == found
    (root / "proc/self/io").unlink()
    assert memory.device_read_bytes(root) is None


PRESSURE = "some avg10=0.00 avg60=1.00 avg300=0.00 total={}\nfull avg10=0.00 total=7\n"


def test_strain_is_that_of_the_tightest_group_and_of_our_own_stalls(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/user/app\n",
        **group("/user/app", {"memory.max": f"{4 * GIB}\n"}, current=3 * GIB, cache=2 * GIB),
        "sys/fs/cgroup/user/app/memory.pressure": PRESSURE.format(123),
        "proc/pressure/memory": PRESSURE.format(999),
    }
    found = memory.strain(machine(tmp_path, files))
    assert (found.headroom_bytes, found.free_bytes) == (3 * GIB, 5 << 10)
    assert (found.stalled_us, found.swapped_bytes) == (123, 0)


def test_strain_of_a_v1_group_takes_the_machine_s_stalls(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/memory/job"
    files = {
        "proc/self/cgroup": "4:memory:/job\n0::/\n",
        "proc/meminfo": f"MemTotal: 64 kB\nMemFree: {9 << 20} kB\nMemAvailable: {32 << 20} kB\n",
        "proc/self/status": "VmSwap:\t 12 kB\n",
        f"{at}/memory.limit_in_bytes": f"{2 * GIB}\n",
        f"{at}/memory.usage_in_bytes": f"{2 * GIB - 5}\n",
        f"{at}/memory.stat": f"total_inactive_file {GIB}\n",
        "proc/pressure/memory": PRESSURE.format(999),
    }
    found = memory.strain(machine(tmp_path, files))
    assert (found.headroom_bytes, found.free_bytes) == (GIB + 5, 5)
    assert (found.stalled_us, found.swapped_bytes) == (999, 12 << 10)


@pytest.mark.parametrize(
    "text", ["", "some", "some total=", "some total=x", "full total=3", "\xff"]
)
def test_a_system_without_stall_information_never_stalls(tmp_path: Path, text: str) -> None:
    found = memory.strain(machine(tmp_path, {"proc/pressure/memory": text}))
    assert found.stalled_us == 0 and found.headroom_bytes == 32 * GIB
