"""The start of the server: what is refused before anything is loaded."""

from pathlib import Path

import pytest

from flashmoe.apps import cli
from flashmoe.apps.serve import command
from flashmoe.apps.serve.limits import Limits
from flashmoe.apps.serve.room import Sizes
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
        (("--api-key", " "), "--api-key is there, and empty"),
        (("--api-key", "ké"), "no header can carry"),
        (("--cors-origin", "foo"), "'foo' is no origin"),
        (("--proxy", "nginx"), "--proxy 'nginx' is no address"),
        (("--max-body", "0"), "--max-body is 0 bytes"),
        (("--request-timeout", "inf"), "--request-timeout is inf"),
        (("--connections", "0"), "--connections"),
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
    assert [budget.host_bytes for budget in budgets] == [Sizes.of(Limits(), 256).total_bytes]


def test_what_is_set_aside_is_what_the_limits_come_to(monkeypatch, capsys):
    services = []

    def listen(listener, door, service, ready, tell, proxies):
        services.append(service)
        ready()

    monkeypatch.setattr(command, "listen", listen)
    flags = ("--max-body", "1MiB", "--connections", "40", "--no-prefix-cache", "--no-profile")
    assert cli.main(["serve", "demo", "--port", "0", *flags]) == 0
    (service,) = services
    plan, sizes = service.engine.plan, service.sizes
    assert sizes == Sizes.of(Limits(connections=40, body_bytes=1 << 20), plan.context_tokens)
    assert plan.host_bytes == sizes.total_bytes
    first, second, last = capsys.readouterr().err.splitlines()[-3:]
    assert first.startswith("serving demo at http://127.0.0.1:") and "the page is at" in second
    assert last == "stopped"


def test_a_server_for_all_addresses_says_so_and_names_one_that_opens(monkeypatch, capsys):
    monkeypatch.setenv("FLASHMOE_API_KEY", "secret\n")
    doors = []

    def listen(listener, door, service, ready, tell, proxies):
        doors.append(door)
        ready()

    monkeypatch.setattr(command, "listen", listen)
    given = ("--host", "0.0.0.0", "--port", "0", "--no-prefix-cache", "--no-profile")
    assert cli.main(["serve", "demo", *given]) == 0
    told = capsys.readouterr().err
    assert "http://127.0.0.1:" in told and "0.0.0.0" not in told
    assert "and at every other address of this machine" in told
    assert doors[0]._guard.key == "secret"


def test_an_empty_variable_is_named(refusal, monkeypatch):
    monkeypatch.setenv("FLASHMOE_API_KEY", "")
    code, line = refusal()
    assert code == 2 and "FLASHMOE_API_KEY is there, and empty" in line


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
