"""A GPU, imitated, behind the command line: replies, and what they tell of it."""

from __future__ import annotations

import json

import pytest

from flashmoe.apps.footer import KEYS, VRAM_KEYS
from tests.apps.conftest import Command

ASKED = ("--raw", "Emma was", "--max-tokens", 3, "--temperature", 0, "--context", 32)


@pytest.mark.usefixtures("gpu")
def test_a_reply_comes_from_the_gpu_and_says_what_it_cost(command: Command):
    vram = ("--kernels", "cuda", "--vram", "68MiB", "--no-profile")
    result = command("run", "demo", *ASKED, *vram, "--stats", "json")
    assert result.code == 0, result.err
    found = json.loads(result.last)
    assert list(found) == [*KEYS, *VRAM_KEYS] and found["gpu"] == "emulated"
    assert 0 < found["vram_slots"] < 256 and found["vram_bytes"] <= 68 << 20
    passed = found["prompt_tokens"] + found["tokens"] - 1
    assert found["vram_hits"] + found["vram_misses"] == passed * 8 * 4  # layers, experts a token
    assert found["copied_bytes"] >= found["vram_misses"] * 27000 > 0
    assert found["hits"] + found["misses"] <= found["vram_misses"]
    assert result.out == command("run", "demo", *ASKED, "--no-profile").out
