"""The command line itself: refusals, exit codes, help and its page in docs/."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main

import flashmoe
from flashmoe import kernels
from flashmoe.apps import cli, flags, places
from flashmoe.errors import BudgetError, InputError, ReadError
from flashmoe.options import Runtime, Sampling
from tests.apps.conftest import Command

ROOT = Path(__file__).parents[2]


def flag_defaults(name: str) -> dict[str, Any]:
    group: Any = typer.main.get_command(cli.app)
    return {parameter.name: parameter.default for parameter in group.commands[name].params}


def test_version(command: Command):
    assert command("--version").out == f"flashmoe {flashmoe.__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("run", "--help"), ("trace", "-h")])
def test_help_goes_to_standard_output(command: Command, arguments):
    result = command(*arguments)
    assert result.code == 0 and "Usage: flashmoe" in result.out and not result.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nonsense",), "No such command 'nonsense'"),
        (("run",), "Missing argument 'STORE'"),
        (("run", "demo", "x", "--nonsense"), "No such option: --nonsense"),
        (("run", "demo", "x", "--max-tokens", "many"), "--max-tokens"),
        (("run", "demo", "x", "--max-tokens", "0"), "max_tokens is 0"),
        (("run", "demo", "x", "--temperature", "-1"), "temperature is -1.0"),
        (("run", "demo", "x", "--threads", "0"), "threads is 0"),
        (("run", "demo", "x", "--kernels", "quick"), "kernels 'quick' are not known"),
        (("run", "demo", "x", "--stats", "yaml"), "--stats"),
        (("run", "demo", "x", "--raw", "--system", "y"), "leave out --raw"),
        (("run", "demo", ""), "the prompt is empty"),
        (("run", "demo", "x", "--save", "/none/such/file"), "no directory /none/such"),
        (("run", "demo", "x", "--trace-out", "/none/such/file"), "no directory /none/such"),
        (("run", "demo", "x", "--tools", "/none/such"), "the tools in /none/such cannot be read"),
        (("trace", "/none/such"), "/none/such cannot be read"),
        (("trace", "/none/such", "--slots", "0"), "--slots"),
        (("plan", "demo", "--nonsense"), "No such option"),
    ],
)
def test_a_wrong_argument_is_one_line_and_code_2(command: Command, arguments, message):
    result = command(*arguments)
    assert result.code == 2 and not result.out
    assert result.err.startswith("error: ") and message in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("run", "/none/such", "x"), ("plan", "/none/such"), ("verify", "/none/such")]
)
def test_a_store_that_is_not_there_is_one_line_and_code_1(command: Command, arguments):
    result = command(*arguments)
    assert result.code == 1 and not result.out
    assert result.err.startswith("error: /none/such is not a directory")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "error, code",
    [(InputError("two\nlines"), 2), (ReadError("two\nlines"), 1), (BudgetError("two\nlines"), 1)],
)
def test_every_refusal_is_one_line(command: Command, monkeypatch, error, code):
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("flashmoe.apps.plan.plan", refuse)
    result = command("plan", "demo")
    assert (result.code, result.out, result.err) == (code, "", "error: two lines\n")


def test_a_bug_keeps_its_traceback(command: Command, monkeypatch):
    monkeypatch.setattr("flashmoe.apps.plan.plan", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command("plan", "demo")


def test_what_the_library_logs_is_shown(command: Command, monkeypatch):
    import logging

    def log(*_: Any, **__: Any) -> None:
        logging.getLogger("flashmoe.store").info("skipped: vision tower")
        logging.getLogger("flashmoe.stream").warning("read again")

    monkeypatch.setattr("flashmoe.apps.plan.plan", log)
    assert command("plan", "demo").err == "skipped: vision tower\nwarning: read again\n"


def test_defaults_are_those_of_the_options():
    found = flag_defaults("run")
    for name in ("presence_penalty", "frequency_penalty"):
        assert found[name] == getattr(Sampling(), name)
    for name in ("chunk_tokens", "io_threads", "hints", "io", "profile"):
        assert found[name] == getattr(Runtime(), name)
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
        assert found[name] is None, "the store decides"


def test_measurements_of_disks_are_kept_in_the_user_s_cache(monkeypatch, tmp_path):
    name = Path("flashmoe") / "devices.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert places.device_cache() == tmp_path / name
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for not_absolute in ("", "caches"):
        monkeypatch.setenv("XDG_CACHE_HOME", not_absolute)
        assert places.device_cache() == tmp_path / "home" / ".cache" / name
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert places.device_cache() == tmp_path / "home" / ".cache" / name

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert places.device_cache() is None


def test_kernels_are_those_that_exist():
    told = get_args(flags.Kernels)[1].metavar.removesuffix("[:N]").split("|")
    assert tuple(told) == kernels.NAMES and kernels.checked("cuda:1") == "cuda:1"


def test_help_is_quick():
    took = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "from flashmoe.apps.cli import main; main(['--help'])"],
            check=True,
            capture_output=True,
        )
        took.append(time.perf_counter() - began)
    assert min(took) < 1.0, "0.3 s on an idle machine"


def test_the_page_in_docs_is_what_the_commands_say():
    made = subprocess.run(
        [sys.executable, "-m", "typer", "flashmoe.apps.cli", "utils", "docs", "--name", "flashmoe"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    page = (ROOT / "docs" / "CLI.md").read_text()
    assert page.strip() == made.strip(), (
        "docs/CLI.md is old: python -m typer flashmoe.apps.cli utils docs --name flashmoe "
        "--output docs/CLI.md"
    )
