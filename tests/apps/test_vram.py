"""A GPU, imitated, behind the command line: replies, and what they tell of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from flashmoe.apps.footer import KEYS, VRAM_KEYS
from tests.apps.conftest import Command

ASKED = ("--raw", "Emma was", "--max-tokens", 3, "--temperature", 0, "--context", 32)


@pytest.mark.usefixtures("gpu")
def test_a_reply_comes_from_the_gpu_and_says_what_it_cost(command: Command):
    vram = ("--kernels", "cuda", "--vram", "78MiB", "--no-profile")
    result = command("run", "demo", *ASKED, *vram, "--stats", "json")
    assert result.code == 0, result.err
    found = json.loads(result.last)
    assert list(found) == [*KEYS, *VRAM_KEYS] and found["gpu"] == "emulated"
    assert 0 < found["vram_slots"] < 256 and found["vram_bytes"] <= 78 << 20
    passed = found["prompt_tokens"] + found["tokens"] - 1
    used = found["vram_hits"] + found["vram_misses"]
    # Layers, experts a token; of the prompt's tokens each expert counts once.
    assert (found["tokens"] - 1) * 8 * 4 < used <= passed * 8 * 4
    assert found["copied_bytes"] >= found["vram_misses"] * 27000 > 0
    assert found["hits"] + found["misses"] <= found["vram_misses"]
    plain = command("run", "demo", *ASKED, "--no-profile", "--timing")
    assert result.out == plain.out and "is Python" in " ".join(plain.err.split())
    told = command("run", "demo", *ASKED, *vram, "--timing").err
    assert "Python" not in told and " hits in VRAM (" in told


@pytest.mark.usefixtures("gpu")
def test_a_text_is_evaluated_on_the_gpu_as_on_the_processor(command: Command, tmp_path: Path):
    text = tmp_path / "text"
    text.write_text("Emma was sitting one evening with her father")
    asked = ("eval", "demo", "--text", text, "--context", 8, "--against", "demo", "--json")
    vram = ("--kernels", "cuda", "--vram", "78MiB")
    found, wanted = (json.loads(command(*asked, *more).out) for more in (vram, ()))
    assert found["text"]["tokens"] == wanted["text"]["tokens"] > 0
    assert found["text"]["perplexity"] == pytest.approx(wanted["text"]["perplexity"], rel=1e-3)
    assert abs(found["against"]["kl_mean"]) < 1e-6


@pytest.mark.usefixtures("gpu")
def test_a_conversation_tells_of_the_gpu(command: Command, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n")))
    flags = ("--max-tokens", 2, "--temperature", 0, "--no-prefix-cache", "--context", 512)
    result = command("chat", "demo", *flags, "--kernels", "cuda", "--vram", "90MiB", "--no-profile")
    assert result.code == 0, result.err
    assert " in VRAM (" in result.err and " GB copied a token, " in result.err
