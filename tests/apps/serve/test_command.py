"""The start of the server: what is refused before anything is loaded."""

import pytest

from flashmoe.apps import cli


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
