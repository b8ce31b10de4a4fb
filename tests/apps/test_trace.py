"""``trace``: tables, JSON object and heat map of a routing log."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.apps.conftest import Command

AUSTEN = Path(__file__).parents[1] / "golden" / "traces" / "austen-moe.jsonl"


def test_every_figure_as_json(command: Command):
    result = command("trace", AUSTEN, "--json", "--record-bytes", "28KiB")
    assert result.code == 0 and not result.err
    found = json.loads(result.out)
    assert found["tokens"] == 657 and found["prompt_tokens"] == 0
    assert (found["layers"], found["experts"], found["top_k"]) == (8, 32, 4)
    assert found["experts_used"] == 254 and found["experts_total"] == 256
    assert found["overlap"] == pytest.approx(0.291, abs=5e-4)
    half, most, nearly = found["coverage"]
    assert [half["share"], most["share"], nearly["share"]] == [0.5, 0.8, 0.95]
    assert half["experts"] < most["experts"] < nearly["experts"] < 254
    assert half["bytes"] == half["experts"] * 28672
    assert [one["slots"] for one in found["replay"]] == [25, 43, 64, 128]
    assert all(one["cold"] == 254 for one in found["replay"])
    first = found["busiest"][0]
    assert (first["layer"], first["expert"], first["count"]) == (7, 28, 397)
    reuse = found["reuse_distance"]
    assert (reuse["median"], reuse["p90"]) == (3, 16)
    assert sum(one["count"] for one in reuse["histogram"]) == 657 * 8 * 4 - 254


def test_slots_choose_the_cache(command: Command):
    found = json.loads(command("trace", AUSTEN, "--json", "--slots", 43).out)
    (replay,) = found["replay"]
    assert replay["slots"] == 43 and replay["hit_rate"] == pytest.approx(0.43, abs=0.01)
    found = json.loads(command("trace", AUSTEN, "--json", "--slots", 10**12).out)
    assert found["replay"][0]["slots"] == 256 and found["replay"][0]["capacity"] == 0


def test_the_slots_of_the_log_are_the_default(command: Command, store, tmp_path):
    command(
        *("run", store, "Hello", "--max-tokens", 5, "--slots", 6), "--trace-out", tmp_path / "l"
    )
    found = json.loads(command("trace", tmp_path / "l", "--json").out)
    assert [one["slots"] for one in found["replay"]] == [6]
    assert found["prompt_tokens"] == 26 and found["record_bytes"] == [4096] * 4


def test_the_tables(command: Command):
    text = command("trace", AUSTEN).out
    for part in (
        "657 tokens (0 of prompts), 8 layers, 32 experts, top-4; 254 of 256 experts were used",
        "overlap from one token to the next: 29.1%",
        "median 3 tokens, 90 % within 16",
    ):
        assert part in text
    rows = [line.split() for line in text.splitlines()]
    assert ["7", "28", "397", "1.89%"] in rows
    assert ["50%", "58", "22.7%", "?"] in rows, "the size of a record is not known"
    assert ["43", "16.8%", "9111", "43.3%", "254", "11659"] in rows
    sized = command("trace", AUSTEN, "--record-bytes", "1GB").out
    assert ["50%", "58", "22.7%", "58", "GB"] in [line.split() for line in sized.splitlines()]


def test_one_token_has_no_overlap_and_no_reuse(command: Command, tmp_path):
    (tmp_path / "log").write_text('{"layers": [[0, 1]]}\n')
    found = json.loads(command("trace", tmp_path / "log", "--json").out)
    assert found["overlap"] is None and found["reuse_distance"]["median"] is None
    text = command("trace", tmp_path / "log").out
    assert "overlap" not in text and "reuse" not in text


def test_the_heat_map_is_a_picture_of_the_counts(command: Command, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "map.png"
    result = command("trace", AUSTEN, "--plot", picture)
    assert result.code == 0 and "657 tokens" in result.out
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[0] > 200 and pixels.shape[1] > 600
    yellow = (pixels[..., 0] > 0.95) & (pixels[..., 1] > 0.85) & (pixels[..., 2] < 0.3)
    assert yellow.sum() > 100, "the busiest expert is bright"
    result = command("trace", AUSTEN, "--plot", tmp_path / "none" / "map.png")
    assert result.code == 2 and "cannot be written" in result.err


def test_without_matplotlib_the_extra_is_named(command: Command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = command("trace", AUSTEN, "--plot", tmp_path / "map.png")
    assert result.code == 2 and "pip install matplotlib" in result.err
