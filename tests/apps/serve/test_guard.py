"""The door: keys, hosts and origins."""

import pytest

from flashmoe.apps.serve.ask import Refusal
from flashmoe.apps.serve.guard import Guard, checked_key, checked_origin
from flashmoe.errors import InputError

KEYED = Guard("secret", hosts=None)


def status_of(guard: Guard, path: str = "/v1/models", **headers: str) -> int:
    try:
        guard.check(path, {name.replace("_", "-"): value for name, value in headers.items()})
    except Refusal as refusal:
        return refusal.status
    return 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "bearer  secret"}, 200),
        ({"x_api_key": "secret"}, 200),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Basic secret"}, 401),
        ({"x_api_key": "secret "}, 401),
        ({"x_api_key": "sécret"}, 401),
        ({}, 401),
    ],
)
def test_a_key_opens(headers, status):
    assert status_of(KEYED, **headers) == status


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/health", 200), ("/web/page.js", 200), ("/metrics", 401), ("/healthy", 401)],
)
def test_only_what_shows_nothing_is_open_without_a_key(path, status):
    assert status_of(KEYED, path) == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8080", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:8080", 403),
        ("localhost@evil.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_name_that_was_made_to_lead_here_is_refused(host, status):
    assert status_of(Guard(), host=host) == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8080", 200),
        ("http://localhost:9090", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
        ("https://friend.example", 200),
    ],
)
def test_pages_elsewhere_are_refused_unless_they_are_allowed(origin, status):
    guard = Guard(origins=("https://friend.example",))
    assert status_of(guard, host="localhost:8080", origin=origin) == status
    allowed = guard.cors(origin, "localhost:8080")
    assert ("access-control-allow-origin" in allowed) == (origin == "https://friend.example")


def test_all_pages_may_be_allowed():
    guard = Guard(origins=("*",))
    assert guard.cors("https://any.example", "localhost")["access-control-allow-origin"]


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://example.org", "https://example.org"),
        ("https://Example.ORG:8443", "https://example.org:8443"),
        (" http://localhost:3000 ", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("tauri://localhost", "tauri://localhost"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("*", "*"),
    ],
)
def test_origins(given, origin):
    assert checked_origin(given) == origin
    if origin != "*":
        assert Guard(origins=(origin,)).allows(origin, "localhost")


@pytest.mark.parametrize(
    "given",
    ["foo", "", "null", "example.org", "https://", "https://example.org/", "https://a.org/page",
     "https://*.example.org", "https://example.org:port", "//example.org", "https://a.org,b.org",
     "https://user@a.org", "https://a.org\n"[:-1] + "\x00"],
)  # fmt: skip
def test_what_is_no_origin_is_refused_with_the_form_that_is(given):
    with pytest.raises(InputError, match=r"is no origin.*https://example\.org"):
        checked_origin(given)


@pytest.mark.parametrize("given", ["secret", "secret ", "secret\n", "\tsecret\r\n"])
def test_white_space_round_a_key_is_not_part_of_it(given):
    key = checked_key(given, "FLASHMOE_API_KEY")
    assert status_of(Guard(key, hosts=None), authorization="Bearer secret") == 200


@pytest.mark.parametrize("given", ["sécret", "two words", "a\nb", "a\x7fb", "\u200bkey"])
def test_a_key_that_no_header_carries_is_refused(given):
    with pytest.raises(InputError, match=r"FLASHMOE_API_KEY.*no header can carry"):
        checked_key(given, "FLASHMOE_API_KEY")


def test_an_empty_key_is_said_to_be_empty():
    for given in ("", " \n"):
        with pytest.raises(InputError, match="FLASHMOE_API_KEY is there, and empty"):
            checked_key(given, "FLASHMOE_API_KEY")
