"""Relief for real: a control group that is too small for the slots.

Without swap, and with nothing to reclaim, the system kills the process; with relief it goes on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash

from flashmoe.quant import Affine, Plain
from flashmoe.store.layout import (
    MANIFEST,
    TRUNK,
    RecordLayout,
    TrunkTensor,
    layer_file,
    layer_header,
    trunk_header,
)
from flashmoe.store.manifest import LayerEntry, Manifest
from tests.stream.conftest import shape_of

MIB = 1 << 20
GROUPS = Path("/sys/fs/cgroup/memory")
LAYERS, EXPERTS, TOP_K = 2, 64, 4

RUN = """
import os, sys
from contextlib import closing
from pathlib import Path
import numpy as np
from flashmoe.options import Runtime
from flashmoe.store.reader import Store
from flashmoe.stream import backing, memory
from flashmoe.stream.streamer import Streamer

backing.WORTH_BYTES = 1 << 40  # else slots may have memory before the group counts it
store, group, relieved = Store.open(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "relief"
count = len(store.manifest.layers) * store.shape.experts.count
dice = np.random.default_rng(1)
with closing(Streamer(store, count, Runtime())) as streamer:
    if not relieved:
        streamer._relief.note = lambda *_: None
    (group / "cgroup.procs").write_text(str(os.getpid()))
    for _ in range(150):
        for layer in range(len(store.manifest.layers)):
            with streamer.hold(layer, dice.choice(store.shape.experts.count, 4)) as experts:
                total = sum(int(weights.gate.weight[0, 0]) for _, weights in experts)
        if relieved:
            streamer.relieve()
    before = memory.resident_bytes()
    given = streamer.shrink(4)
    print(streamer.slots, given, before - memory.resident_bytes())
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A group of 160 MiB below our own, without swap."""
    lines = Path("/proc/self/cgroup").read_text() if Path("/proc/self/cgroup").exists() else ""
    own = next((line.split(":", 2)[2] for line in lines.splitlines() if ":memory:" in line), "/")
    parent = next((path for path in (GROUPS / own.strip("/"), GROUPS) if path.is_dir()), GROUPS)
    made = parent / f"flashmoe-test-{os.getpid()}"
    try:
        made.mkdir()
        (made / "memory.limit_in_bytes").write_text(str(160 * MIB))
    except OSError as error:
        if made.is_dir():
            made.rmdir()
        pytest.skip(f"needs root and the memory controller of cgroup v1 at {GROUPS}: {error}")
    yield made
    for _ in range(100):
        try:
            made.rmdir()
            return
        except OSError:  # the dead are still being buried
            time.sleep(0.05)
    pytest.fail(f"{made} could not be removed")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 experts of 1.7 MiB: 216 MiB, more than the group may have."""
    path = tmp_path_factory.mktemp("large")
    form = Affine(4, 64)
    shape = replace(shape_of(("recurrent", "attention")), hidden=1024)
    experts = replace(shape.experts, count=EXPERTS, top_k=TOP_K, intermediate=1024)
    shape = replace(shape, experts=experts)
    layout = RecordLayout(form, form, form, 1024, 1024)
    header = layer_header(layout, EXPERTS)
    body = np.random.default_rng(1).integers(0, 256, (EXPERTS, layout.record_bytes), np.uint8)
    body[:, layout.nbytes :] = 0
    sums = tuple(xxhash.xxh3_64_hexdigest(record.data) for record in body)
    entries = []
    for layer in range(LAYERS):
        (path / layer_file(layer)).write_bytes(header + body.tobytes())
        entries.append(LayerEntry(layer_file(layer), layout, len(header), sums))
    trunk = (TrunkTensor("norm.weight", Plain("BF16"), (1024,)),)
    start, extents = trunk_header(trunk)
    (path / TRUNK).write_bytes(start + bytes(sum(nbytes for _, nbytes in extents.values())))
    parts = {name: xxhash.xxh3_64_hexdigest(bytes(size)) for name, (_, size) in extents.items()}
    manifest = Manifest(shape, tuple(entries), trunk, parts, {}, {}, {})
    (path / MANIFEST).write_text(manifest.to_json())
    return path


def run(store: Path, group: Path, mode: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, str(store), str(group), mode]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_group_that_is_too_small_is_survived_and_memory_really_returns(
    store: Path, group: Path
) -> None:
    found = run(store, group, "relief")
    assert found.returncode == 0, found.stderr
    slots, given, returned = map(int, found.stdout.split())
    record = 3 * 1024 * 1024 * 9 // 16
    assert 8 <= slots < LAYERS * EXPERTS * 2 // 3
    assert given >= 4 and returned >= 4 * record * 0.9


def test_without_relief_the_system_would_kill_it(store: Path, group: Path) -> None:
    if not (lines := Path("/proc/swaps").read_text().splitlines()[1:]):
        assert run(store, group, "none").returncode == -9
    else:
        pytest.skip(f"there is swap, so that nothing is killed: {lines[0]}")
