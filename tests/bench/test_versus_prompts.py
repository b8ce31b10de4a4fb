"""Prompts beside llama.cpp's: whom we are compared with, and the limit."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench.conftest import Load
from tests.bench.test_versus import GIB, case_of


@pytest.mark.parametrize(
    ("name", "tokens", "ram", "ways"),
    [
        ("a-ram-512", 512, None, [("repacked", None), ("mapped", None)]),
        ("a-8g-4096", 4096, 8 * GIB, [("tuned", 128), ("read-ahead 1 MiB", 1024),
                                      ("own read-ahead", None)]),
        ("b-12g-512", 512, 12 * GIB, [("tuned", 128), ("read-ahead 1 MiB", 1024),
                                      ("own read-ahead", None)]),
    ],
)  # fmt: skip
def test_the_cases_of_prompts(load: Load, name, tokens, ram, ways) -> None:
    case = case_of(load, "--case", name)
    assert (case.prompts, case.prompt_tokens, case.ram_bytes) == (True, tokens, ram)
    assert [(peer.name, peer.read_ahead_kib) for peer in case.peers] == ways
    assert all(peer.turns is None for peer in case.peers)
    assert case_of(load, "tiny", "--prompts").prompts and not case_of(load, "tiny").prompts


def peer_figures(speed: float, **more: Any) -> dict[str, Any]:
    kept = {"read_ahead_kib": 128, "library": "0", "gen_tokens": 9, "features": [], "build": "x"}
    return (
        {"pp_tok_s": speed, "tg_tok_s": 1.0, "limit_tok_s": 8.0, "batch_tokens": 512} | kept | more
    )


@pytest.mark.parametrize(("tokens", "large"), [(512, 0.0), (4096, 30.0), (4096, 25.0)])
def test_the_best_way_of_each_build_is_kept(load: Load, monkeypatch, tokens, large) -> None:
    """The quickest way is tried in larger batches too, where there are so many tokens."""
    module = load("versus_llamacpp")
    case = case_of(load, "--case", "a-ram-512", "--prompt-tokens", str(tokens))
    speeds = {"repacked": 28.0, "mapped": 15.0, "repacked, 2048": large, "ik, repacked": 20.0,
              "ik, mapped": 21.0, "ik, mapped, 2048": 10.0}  # fmt: skip
    ran: list[tuple[str, str, int]] = []

    def run(sides: object, peer: Any) -> dict[str, Any]:
        ran.append((peer.name, peer.build, peer.batch_tokens))
        return peer_figures(speeds[peer.name])

    monkeypatch.setattr(module, "run_peer", run)
    monkeypatch.setattr(module, "run_ours", lambda sides: peer_figures(40.0, bytes_per_token=0))
    monkeypatch.setattr(module, "brief", lambda figures: "")
    pythons = {"native": Path("a"), "ik": Path("b")}
    found = module.turns(SimpleNamespace(case=replace(case, repeat=3), pythons=pythons))
    best = "repacked, 2048" if large > speeds["repacked"] else "repacked"
    tried = ["repacked", "mapped", "ik, repacked", "ik, mapped"]
    tried += ["repacked, 2048", "ik, mapped, 2048"] if tokens > 512 else []
    assert [name for name, _, _ in ran] == tried + [best, "ik, mapped"] * 2
    assert all(build == ("ik" if "ik" in name else "native") for name, build, _ in ran)
    assert all(batch == (2048 if "2048" in name else 512) for name, _, batch in ran)
    assert len(found["flashmoe"]) == len(found[best]) == len(found["ik, mapped"]) == 3
    medians = module.summary(found)
    assert medians[best]["turns"] == 3 and medians["mapped"]["turns"] == 1
    assert medians[best]["pp_tok_s_ratio"] == pytest.approx(40 / speeds[best])


OURS = {
    "pp_tok_s": 100.0, "pp_tok_s_range": [90, 110], "disk_bytes_s": 2e9, "prompt_bytes": 12e9,
    "prompt_touched_bytes": 11e9, "prompt_needed_bytes": 10e9, "prompt_ms_arithmetic": 4500.0,
    "prompt_ms_read_wait": 900.0, "peak_rss_bytes": GIB, "turns": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("arithmetic", "limit"), [(3000.0, 512 / 5), (8000.0, 512 / 8), (None, 512 / 5)]
)
def test_the_limit_is_the_disk_or_the_arithmetic_in_memory(load: Load, capsys, arithmetic, limit):
    module, case = load("versus_prompts"), case_of(load, "--case", "a-8g-512")
    peer = {"pp_tok_s": 20.0, "pp_tok_s_range": [20, 20], "prompt_bytes_per_token": 1e8,
            "pp_tok_s_ratio": 5.0, "pp_tok_s_ratio_range": [5, 5], "peak_rss_bytes": GIB,
            "turns": 1}  # fmt: skip
    found: dict[str, dict[str, Any]] = {"flashmoe": dict(OURS), "tuned": peer}
    resident = None
    if arithmetic is not None:
        resident = {"prompt_ms_arithmetic": arithmetic, "prompt_ms_read_wait": 70.0}
        resident["prompt_bytes"] = 5
    module.add_limit(case, found, resident)
    assert [side["pp_limit_tok_s"] for side in found.values()] == pytest.approx([limit] * 2)
    assert found["flashmoe"]["pp_share_of_limit"] == pytest.approx(100 / limit)
    module.show(case, found, resident)
    shown = capsys.readouterr().out
    assert "touched once 11.00 GB, of these missing 10.00 GB, read 12.00 GB, disk 2.00" in shown
    assert ("0.07 s of waiting for reads were left out" in shown) is (resident is not None)
    assert "51.20" in shown.splitlines()[2], "GB that llama.cpp read"


def test_what_memory_holds_is_run_without_a_limit(load: Load, monkeypatch) -> None:
    runs, given = load("versus_runs"), []
    case = case_of(load, "--case", "a-8g-512")
    sides = runs.Sides(case, Path("store"), None, {})
    monkeypatch.setattr(runs, "run_json", lambda *words: given.append(words))
    monkeypatch.setattr(runs.Sides, "drop", lambda self: None)
    runs.run_resident(sides)
    runs.run_ours(sides)
    resident, cold = given
    assert "--ram" not in resident[0] and "--cold" not in resident[0] and resident[1] is None
    assert "--ram" in cold[0] and "--cold" in cold[0] and cold[1] == 8 * GIB
    prompts = [words[words.index("--prompt-tokens") + 1] for words, *_ in given]
    assert prompts == ["512", "512"]


def test_environments_are_named_by_their_build(load: Load, capsys) -> None:
    module, parser = load("versus_llamacpp"), argparse.ArgumentParser()
    found = module.environments(parser, ["/a", "ik=/b", "avx512=/c=d"])
    assert found == {"native": Path("/a"), "ik": Path("/b"), "avx512": Path("/c=d")}
    for words in (["/a", "native=/b"], ["other=/a"]):
        with pytest.raises(SystemExit):
            module.environments(parser, words)
        assert "native, avx512, ik at most once" in capsys.readouterr().err
