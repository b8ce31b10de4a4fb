"""``--kernels`` and ``--vram`` of every command: checked before anything is loaded."""

from __future__ import annotations

import pytest

from flashmoe.apps import bench, plan
from flashmoe.apps.request import vram_of
from flashmoe.engine import Engine
from flashmoe.errors import InputError
from tests.apps.conftest import Command

COMMANDS = (
    ("plan", "demo"),
    ("run", "demo", "Emma"),
    ("chat", "demo"),
    ("serve", "demo", "--port", 0),
    ("bench", "demo"),
    ("eval", "demo", "--text", __file__),
)
all_commands = pytest.mark.parametrize("asked", COMMANDS, ids=lambda asked: asked[0])


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "__init__", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(bench.ceilings, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(plan, "plan_store", lambda *_, **__: pytest.fail("planned"))


@all_commands
@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:1", "CUDA"])
def test_kernels_that_there_are_not(command: Command, asked, name):
    result = command(*asked, "--kernels", name)
    assert result.code == 2 and not result.out
    assert f"kernels '{name}' are not known" in result.last and "or cuda:1" in result.last


@all_commands
@pytest.mark.parametrize("more", [(), ("--kernels", "cpu")])
def test_vram_wants_a_gpu(command: Command, asked, more):
    result = command(*asked, "--vram", "8GiB", *more)
    assert result.code == 2 and not result.out
    assert "give --kernels cuda too, or leave --vram out" in result.last


@all_commands
@pytest.mark.parametrize("size, word", [("much", "'much' is not a size"), ("0", "leaves no room")])
def test_vram_is_a_size(command: Command, asked, size, word):
    result = command(*asked, "--kernels", "cuda", "--vram", size)
    assert result.code == 2 and word in result.last


@all_commands
@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_command_says_so(command: Command, asked):
    result = command(*asked, "--kernels", "cuda")
    assert result.code == 1 and not result.out
    assert result.last == "error: no NVIDIA GPU can be used: run with --kernels cpu"


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_this_machine_lacks(command: Command):
    result = command("plan", "demo", "--kernels", "cuda:3")
    assert result.code == 1 and "there is no GPU 3: this machine has 1" in result.last


def test_what_vram_comes_to():
    assert vram_of(None, "auto") is vram_of(None, "cuda:1") is None
    assert vram_of("8GiB", "cuda") == vram_of("8GiB", "cuda:1") == 8 << 30
    with pytest.raises(InputError, match="kernels 'cuda:-1' are not known"):
        vram_of("8GiB", "cuda:-1")
