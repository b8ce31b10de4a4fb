"""The start of the server: what is refused before anything is loaded."""

from pathlib import Path

import pytest

from flashmoe.apps import cli
from flashmoe.apps.serve import command
from flashmoe.engine import Engine
from tests.apps.conftest import write_speaking_store


@pytest.fixture
def refusal(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FLASHMOE_API_KEY", raising=False)

    def serve(*flags):
        code = cli.main(["serve", "demo", "--port", "0", *flags])
        return code, capsys.readouterr().err.splitlines()[-1]

    return serve


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--host", "0.0.0.0"), "there is no API key"),
        (("--api-key", " "), "the API key is empty"),
        (("--no-prefix-cache", "--prefix-cache", "x"), "exclude each other"),
        (("--no-prefix-cache", "--prefix-cache-size", "1GiB"), "exclude each other"),
        (("--max-body", "lots"), "lots"),
        (("--port", "70000"), "65535"),
        (("--queue", "0"), "--queue"),
        (("--host", "no.such.host.invalid"), "cannot listen"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(refusal, flags, words):
    code, line = refusal(*flags)
    assert code == 2 and line.startswith("error: ") and words in line


def test_a_store_that_is_not_there(refusal, capsys):
    assert cli.main(["serve", "/no/such/store", "--port", "0"]) == 1
    assert "no/such/store" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["serve", "chat"])
def test_without_a_home_the_prefix_cache_is_named_or_left_out(name, monkeypatch, capsys):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cli.main([name, "/no/such/store"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "no home" in line and "--prefix-cache DIR" in line and "--no-prefix-cache" in line
    assert cli.main([name, "/no/such/store", "--no-prefix-cache"]) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--chunk-tokens", "65"), "chunks of 65 tokens show in the last digits"),
        (("--kv", "int8"), "rounded to 8 bits"),
        (("--experts-per-token", "1"), "answers differ from the published model"),
    ],
)
def test_what_shows_in_the_answer_is_said_at_start(monkeypatch, capsys, flags, words):
    budgets = []
    real = Engine.open

    def opened(store, **options):
        budgets.append(options["budget"])
        return real(store, **options)

    monkeypatch.setattr(Engine, "open", opened)
    monkeypatch.setattr(command, "listen", lambda *_: None)
    given = ("--port", "0", "--no-prefix-cache", "--context", "256", "--no-profile")
    assert cli.main(["serve", "demo", *given, *flags]) == 0
    assert words in capsys.readouterr().err
    assert [budget.host_bytes for budget in budgets] == [command.HOST_BYTES]


@pytest.mark.parametrize(
    ("flags", "thinking"), [((), None), (("--think",), True), (("--no-think",), False)]
)
def test_whether_it_thinks_unless_asked_can_be_set(monkeypatch, flags, thinking):
    services = []
    monkeypatch.setattr(command, "listen", lambda *given: services.append(given[2]))
    given = ("--port", "0", "--no-prefix-cache", "--context", "256", "--no-profile")
    assert cli.main(["serve", "demo", *given, *flags]) == 0
    assert [service.served.thinking for service in services] == [thinking]


def test_a_store_that_cannot_think_is_not_asked_to(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "listen", lambda *_: None)
    store = tmp_path / "mute"
    write_speaking_store(store, "{% for m in messages %}{{ m.content }}{% endfor %}")
    given = ("--port", "0", "--no-prefix-cache", "--no-profile")
    assert cli.main(["serve", str(store), *given, "--think"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--think asks mute to reason" in line and "leave it out" in line
    assert cli.main(["serve", str(store), *given, "--no-think"]) == 0
