"""The cache against a simple model of it: the longest kept prefix, and the very bits of it."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import InputError
from flashmoe.model.state import State
from flashmoe.options import PrefixCache
from tests.prefix.states import F32, MODEL, grown, opened, same
from tests.synthetic import DENSE, HYBRID

ROOT = Path(__file__).parents[2]
IDS = [int(i) for i in np.random.default_rng(3).integers(0, 96, 1500)]


def resume(prefixes, ids, most=None, shape=HYBRID):
    """How much of ids was resumed; checks every bit of it."""
    state = State(shape, 2048, F32, "f32")
    position, blocks = prefixes.resume(ids, len(ids) if most is None else most, state)
    assert same(state, grown(ids[:position], shape=shape))
    assert len(blocks) == position // 256
    return position


def keep(prefixes, ids, blocks=(), shape=HYBRID):
    return prefixes.keep(ids, grown(ids, shape=shape), blocks)


@pytest.fixture
def prefixes(tmp_path):
    made = opened(PrefixCache(tmp_path / "cache"))
    yield made
    made.close()


timelines = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 700)), min_size=1, max_size=4)
wanted = st.lists(st.tuples(st.booleans(), timelines), max_size=8)


def spelled(turns):
    """A timeline of runs of a token, so that many begin alike."""
    return [token for token, length in turns for _ in range(length)][:1200]


@settings(max_examples=25, deadline=None)
@given(wanted, st.booleans())
def test_the_longest_kept_prefix_is_what_resumes(todo, on_disk):
    with TemporaryDirectory() as path:
        options = PrefixCache(Path(path)) if on_disk else PrefixCache(memory_bytes=64 << 20)
        prefixes, kept = opened(options), []
        for keeping, turns in todo:
            ids = spelled(turns)
            if keeping:
                keep(prefixes, ids)
                kept.append(ids)
                continue
            beginnings = {len(one) for one in kept if ids[: len(one)] == one}
            if len(ids) % 64 == 1:
                beginnings.discard(len(ids) - 1)
            assert resume(prefixes, ids) == max(beginnings, default=0)
            most = len(ids) // 2
            nearest = max((length for length in beginnings if length <= most), default=0)
            assert resume(prefixes, ids, most) == nearest
        prefixes.close()


@pytest.mark.parametrize("shape", [HYBRID, DENSE], ids=["hybrid", "dense"])
def test_a_common_beginning_is_written_once(tmp_path, shape):
    prefixes = opened(PrefixCache(tmp_path), shape)
    _, first = keep(prefixes, IDS[:1100], shape=shape)
    prefixes.flush()
    assert first == prefixes.written_bytes
    # Its blocks are found again by what is in them, and need not be known.
    blocks, second = keep(prefixes, IDS[:1050] + IDS[:100], shape=shape)
    prefixes.flush()
    assert first + second == prefixes.written_bytes < first + first // 2
    assert keep(prefixes, IDS[:1050] + IDS[:100], blocks, shape=shape)[1] == 0
    files = [path for path in tmp_path.rglob("*.prefix")]
    assert sorted(path.name[:5] for path in files) == ["block"] * 4 + ["state"] * 2
    assert sum(path.stat().st_size for path in files) == prefixes.written_bytes
    prefixes.close()
    other = opened(PrefixCache(tmp_path), shape)
    assert resume(other, IDS, shape=shape) == 1100 and other.written_bytes == 0
    other.close()


def test_the_branch_is_where_a_known_path_was_left(tmp_path, prefixes):
    assert prefixes.branch(IDS) == 0
    keep(prefixes, IDS[:1000])
    assert prefixes.branch(IDS) == 960
    assert prefixes.branch(IDS[:500] + IDS) == 448
    assert prefixes.branch(IDS[:130]) == 128
    assert prefixes.branch(IDS[1:]) == 0
    prefixes.close()
    other = opened(PrefixCache(tmp_path / "cache"))  # knows it from what is on disk
    assert other.branch(IDS[:500] + IDS) == 448
    other.close()


@pytest.mark.parametrize("kind", ["state", "block"])
def test_a_damaged_piece_is_refused_removed_and_told(tmp_path, caplog, kind):
    prefixes = opened(PrefixCache(tmp_path))
    keep(prefixes, IDS[:300])
    keep(prefixes, IDS[:600])
    prefixes.close()
    found = tmp_path.rglob("state-600-*" if kind == "state" else "block-*")
    victim = max(found, key=lambda path: path.stat().st_mtime_ns)
    whole, rng = victim.read_bytes(), random.Random(5)
    regions = [0, 8, 12, 16, 40, len(whole) - 1, len(whole) - 9, *rng.sample(range(len(whole)), 25)]
    lengths = [0, 7, 16, 100, len(whole) // 2, len(whole) - 1]
    damages = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in regions]
    damages += [whole[:length] for length in lengths] + [whole + b"\0"]
    rest = {path: path.read_bytes() for path in tmp_path.rglob("*.prefix")}
    for damaged in damages:
        for path, content in rest.items():
            path.write_bytes(content)
        victim.write_bytes(damaged)
        other = opened(PrefixCache(tmp_path))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert resume(other, IDS[:700]) in (0, 300)
        assert "is refused, since" in caplog.text
        assert not victim.exists()
        keep(other, IDS[:600])  # and is mended by the next that comes this way
        other.close()
        again = opened(PrefixCache(tmp_path))
        assert resume(again, IDS[:700]) == 600
        again.close()


def test_a_piece_of_another_model_or_of_other_tokens_is_refused(tmp_path, caplog):
    prefixes = opened(PrefixCache(tmp_path))
    keep(prefixes, IDS[:200])
    keep(prefixes, IDS[1:201])
    prefixes.close()
    room = tmp_path / MODEL
    one, other = sorted(room.iterdir())
    one.write_bytes(other.read_bytes())
    cache = opened(PrefixCache(tmp_path))
    found = [resume(cache, ids) for ids in (IDS[:200], IDS[1:201])]
    assert sorted(found) == [0, 200] and "it is of other tokens" in caplog.text
    cache.close()
    elsewhere = tmp_path / f"{MODEL[:16]}-int8"
    elsewhere.mkdir()
    for path in room.iterdir():
        path.rename(elsewhere / path.name)
    cache = opened(PrefixCache(tmp_path), kv="int8")
    state = State(HYBRID, 2048, F32, "int8")
    assert [cache.resume(ids, 200, state)[0] for ids in (IDS[:200], IDS[1:201])] == [0, 0]
    assert same(state, State(HYBRID, 2048, F32, "int8")), "an empty state stays empty"
    assert "of another timeline or model" in caplog.text
    cache.close()


def test_a_piece_that_vanishes_is_no_fault(tmp_path, caplog):
    prefixes = opened(PrefixCache(tmp_path))
    keep(prefixes, IDS[:300])
    keep(prefixes, IDS[:700])
    prefixes.close()
    newest = max(tmp_path.rglob("block-*"), key=lambda path: path.stat().st_mtime_ns)
    newest.unlink()
    other = opened(PrefixCache(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert resume(other, IDS) in (0, 300)
        blocks, _ = keep(other, IDS[:700])
        assert resume(other, IDS) == 700
        # One that this very timeline has known is written again as well.
        other.flush()
        (tmp_path / MODEL / f"{blocks[1]}.prefix").unlink()
        other._memory.forget(blocks[1])
        assert keep(other, IDS[:800], blocks)[0][:2] == blocks
        assert resume(other, IDS) == 800
    assert not caplog.records
    other.close()


def test_what_does_not_fit_is_not_begun(tmp_path, caplog):
    prefixes = opened(PrefixCache(tmp_path, disk_bytes=300_000))
    assert keep(prefixes, IDS[:1000])[1] == 0
    assert keep(prefixes, IDS[:1100])[1] == 0
    assert caplog.text.count("does not fit in a prefix cache of") == 1
    keep(prefixes, IDS[:100])
    prefixes.close()
    assert [path.name[:9] for path in tmp_path.rglob("*.prefix")] == ["state-100"]
    with pytest.raises(InputError, match="give at least"):
        opened(PrefixCache(tmp_path, memory_bytes=1000))


def test_the_size_limit_is_kept_and_the_latest_stays(tmp_path):
    prefixes = opened(PrefixCache(tmp_path, disk_bytes=600_000))
    for start in range(0, 400, 20):
        keep(prefixes, IDS[start : start + 600])
        prefixes.flush()
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.prefix")) <= 600_000
    prefixes.close()
    other = opened(PrefixCache(tmp_path, disk_bytes=600_000))
    assert resume(other, IDS[380:980]) == 600
    other.close()


def test_without_a_directory_it_is_all_in_memory():
    prefixes = opened(PrefixCache(memory_bytes=4 << 20))
    keep(prefixes, IDS[:1000])
    assert resume(prefixes, IDS) == 1000 and prefixes.written_bytes == 0
    prefixes.flush()
    for start in range(1, 60):
        keep(prefixes, IDS[start : start + 1000])
        assert prefixes._memory.used_bytes <= 4 << 20
    assert resume(prefixes, IDS[59:]) == 1000
    assert resume(prefixes, IDS) == 0
    prefixes.close()
    assert keep(prefixes, IDS[:500]) == ([], 0) and resume(prefixes, IDS[:500]) == 0


def test_memory_stays_within_its_bound_while_more_is_kept_and_resumed(tmp_path):
    prefixes = opened(PrefixCache(tmp_path, memory_bytes=500_000))
    for length in range(300, 1500, 100):
        keep(prefixes, IDS[:length])
        assert prefixes._memory.used_bytes <= prefixes._memory.limit_bytes
    assert resume(prefixes, IDS) == 1400
    assert prefixes._memory.used_bytes <= prefixes._memory.limit_bytes < prefixes.written_bytes
    prefixes.close()


WORK = """
import random, sys
from pathlib import Path
from flashmoe.options import PrefixCache
from tests.prefix.test_cache import IDS, keep, opened, resume
path, seed, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng, prefixes = random.Random(seed), opened(PrefixCache(path, disk_bytes=limit))
print("begun", flush=True)
for turn in range(int(sys.argv[4])):
    start = rng.randrange(3)
    ids = IDS[start : start + rng.randrange(64, 1200)]
    keep(prefixes, ids)
    resume(prefixes, ids + [0, 1])
prefixes.close()
print("done")
"""


def work(path, seed, limit, turns):
    return subprocess.Popen(
        [sys.executable, "-c", WORK, *map(str, (path, seed, limit, turns))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_two_processes_share_a_directory_and_its_limit(tmp_path):
    limit = 2_000_000
    both = [work(tmp_path, seed, limit, 40) for seed in (1, 2)]
    while any(one.poll() is None for one in both):
        sizes = []
        for path in tmp_path.rglob("*"):
            try:
                sizes.append(path.stat().st_size if path.is_file() else 0)
            except FileNotFoundError:
                continue
        assert sum(sizes) <= limit + 600_000  # a listing is no moment: files come and go meanwhile
        time.sleep(0.02)
    for one in both:
        out, err = one.communicate(timeout=60)
        assert out.split() == ["begun", "done"], err
        assert "refused" not in err
    assert 0 < sum(path.stat().st_size for path in tmp_path.rglob("*.prefix")) <= limit


def test_killed_while_writing_it_stays_usable(tmp_path):
    rng = random.Random(7)
    for seed in range(5):
        worker = work(tmp_path, seed, 3_000_000, 10_000)
        assert worker.stdout is not None and worker.stdout.readline() == "begun\n"
        time.sleep(rng.uniform(0.02, 0.2))
        os.kill(worker.pid, signal.SIGKILL)
        worker.communicate()
    checker = opened(PrefixCache(tmp_path, disk_bytes=3_000_000))
    assert not list(tmp_path.rglob("*.partial"))
    found = [resume(checker, IDS[start:]) for start in range(3)]
    assert any(found)
    keep(checker, IDS[:1400])
    checker.close()
    again = opened(PrefixCache(tmp_path, disk_bytes=3_000_000))
    assert resume(again, IDS) == 1400
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) <= 3_100_000
    again.close()
