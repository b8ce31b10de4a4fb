"""The door: keys, hosts and origins."""

import pytest

from flashmoe.apps.serve.ask import Refusal
from flashmoe.apps.serve.guard import Guard

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
