"""Results are kept by machine and commit, and drawn over commits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.conftest import BENCH, Load

MACHINE = {"name": "box", "processor": "a processor", "cores": 2, "memory_gib": 24}


def versus_run(speed: float) -> dict[str, object]:
    sides = {
        "flashmoe": {"tg_tok_s": speed, "pp_tok_s": 40.0, "share_of_limit": 0.9},
        "tuned": {"tg_tok_s": 1.0, "pp_tok_s": 8.0, "share_of_limit": 0.2},
    }
    return {
        "bench": "versus_llamacpp",
        "date": "2026-01-01T00:00:00+00:00",
        "arguments": {"case": "a-8g"},
        "figures": {"sides": sides},
    }


def other_runs() -> list[dict[str, object]]:
    figures: dict[str, dict[str, object]] = {
        "kernels": {"gb_s": {"4 bits": {"avx512": 48.0, "generic": 6.0, "read": 50.0},
                             "xxh3": {"one thread": 20.0}}},
        "disk": {"gb_s": {"direct_1": 1.3, "direct_8": 1.9, "cached_8": 1.0}},
        "cache": {"trace": "olmoe.jsonl", "rows": [
            {"share": 0.17, "ours": 0.54, "lru": 0.44, "belady": 0.68},
            {"share": 0.25, "ours": 0.6, "lru": 0.5, "belady": 0.7}]},
        "unheard of": {},
    }  # fmt: skip
    return [
        {"bench": bench, "date": "", "arguments": {}, "figures": found}
        for bench, found in figures.items()
    ]


def two_commits() -> list[dict[str, object]]:
    return [
        {"machine": MACHINE, "commit": "a" * 10, "commit_date": "2026-01-01T00:00:00+00:00",
         "changed": False, "runs": [versus_run(4.0), versus_run(5.0), versus_run(9.0)]},
        {"machine": MACHINE, "commit": "b" * 10, "commit_date": "2026-01-02T00:00:00+00:00",
         "changed": True, "runs": [versus_run(6.0), *other_runs()]},
    ]  # fmt: skip


def keep(folder: Path) -> Path:
    folder.mkdir()
    for number, results in enumerate(reversed(two_commits())):
        (folder / f"{number}.json").write_text(json.dumps(results))
    return folder


def test_runs_of_a_commit_are_appended(load: Load, tmp_path: Path) -> None:
    results = load("results")
    figures = {"gb_s": {"4 bits": {"generic": 1.0}}}
    for rows in (1, 2):
        path = results.save("kernels", figures, {"rows": rows}, machine=MACHINE, folder=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    found = results.load(path)
    assert path.name.startswith(f"box.{found['commit']}") and found["machine"] == MACHINE
    assert [run["arguments"] for run in found["runs"]] == [{"rows": 1}, {"rows": 2}]
    assert found["runs"][0]["figures"] == figures


def test_a_machine_is_named_by_what_it_is(load: Load, tmp_path: Path) -> None:
    results = load("results")
    machine = results.machine()
    assert machine["name"].endswith(f"{machine['cores']}c-{machine['memory_gib']}g")
    assert results.machine("mine")["name"] == "mine"
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name\t: Some CPU @ 3 GHz\n")
    assert results.processor_name(cpuinfo) == "Some CPU @ 3 GHz"


def test_lines_are_medians_a_commit_in_the_order_of_commits(load: Load, tmp_path: Path) -> None:
    found = load("results").load_all(keep(tmp_path / "results"))
    series = load("series")
    assert series.commits(found) == ["2026-01-01 aaaaaaa", "2026-01-02 bbbbbbb*"]
    panels = {panel.title: panel.lines for panel in series.panels(found)}
    decode = panels["decode, tok/s: a-8g"]
    assert decode == {"flashmoe": [(0, 5.0), (1, 6.0)], "llama.cpp, tuned": [(0, 1.0), (1, 1.0)]}
    assert panels["decode, share of the limit"]["a-8g: llama.cpp, tuned"] == [(0, 0.2), (1, 0.2)]
    assert panels["products, GB/s of weights"]["4 bits"] == [(1, 48.0)]
    assert panels["products, GB/s of weights"]["plain read"] == [(1, 50.0)]
    assert panels["disk, GB/s of records"] == {"direct": [(1, 1.9)], "cached": [(1, 1.0)]}
    assert panels["hits: olmoe"]["ours at 17%"] == [(1, 0.54)]
    assert not any("25%" in line for line in panels["hits: olmoe"])


def plot(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCH / "plot.py", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def test_results_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the extra bench")
    from matplotlib.image import imread

    folder, image = keep(tmp_path / "results"), tmp_path / "results.png"
    done = plot("--results", folder, "--out", image)
    assert done.returncode == 0, done.stderr
    pixels = imread(image)
    assert pixels.shape[0] > 400 and pixels.shape[1] > 1200 and pixels[..., :3].std() > 0.05


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    folder = keep(tmp_path / "results")
    done = plot("--results", tmp_path, "--out", tmp_path / "x.png")
    assert done.returncode == 2 and "run a bench with --save" in done.stderr
    other = {**two_commits()[0], "machine": {**MACHINE, "name": "other"}}
    (folder / "2.json").write_text(json.dumps(other))
    done = plot("--results", folder, "--out", tmp_path / "x.png")
    assert done.returncode == 2 and "results of box, other" in done.stderr


def test_benches_keep_their_figures(tmp_path: Path) -> None:
    """``--save`` of a real bench: the arguments it keeps hold no path."""
    script = (
        f"import sys, pathlib; sys.path.insert(0, {str(BENCH)!r})\n"
        f"import results; results.save.__kwdefaults__['folder'] = pathlib.Path({str(tmp_path)!r})\n"
        "import cache; cache.main()\n"
    )
    trace = BENCH.parent / "tests" / "golden" / "traces" / "olmoe-1b-7b.jsonl"
    flags = ["--share", "0.17", "--save", "--machine", "box"]
    done = subprocess.run(
        [sys.executable, "-c", script, str(trace), *flags], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("box.")
    text = path.read_text()
    assert "/" not in text.replace("+00:00", "")
    (run,) = json.loads(text)["runs"]
    assert run["bench"] == "cache" and run["figures"] == json.loads(done.stdout.splitlines()[-1])
