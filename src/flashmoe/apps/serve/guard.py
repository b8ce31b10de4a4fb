"""Who may ask: the key, the host that was meant, and the page that asks.

Owns three checks, made before anything of a request but its head is read:

- The API key, where there is one: ``Authorization: Bearer`` or ``x-api-key``, compared in a time
  that does not depend on it. Everything needs it but what a browser loads to ask for it, and
  ``/health``.
- The Host header, on a loopback address without a key: a page elsewhere whose name was made to
  resolve to this machine (DNS rebinding) still sends its own name.
- The Origin header, which a browser sends: the server's own, or one that was allowed. Others may
  not even make this machine work.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from flashmoe.apps.serve.ask import Refusal
from flashmoe.errors import InputError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN_PATHS = frozenset({"/", "/health", "/favicon.ico"})
OPEN_FOLDER = "/web/"
"""What needs no key: the page's own files, which hold nothing of anybody."""


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def checked_origin(text: str) -> str:
    """An origin as browsers send it, or ``*``.

    Raises:
        InputError: it is none.
    """
    origin = text.strip().lower()
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise InputError(
            f"--cors-origin {text!r} is no origin: give scheme://host or scheme://host:port, as "
            "https://example.org, without a path; or * for all pages"
        )
    return origin


def checked_key(text: str, origin: str) -> str:
    """A key as clients can send it; ``origin`` is where it was given, for messages.

    Raises:
        InputError: there is none, or no header can carry it.
    """
    key = text.strip()
    if not key:
        raise InputError(f"{origin} is there, and empty: give it a key, or leave it out")
    if odd := re.search(r"[^!-~]", key):
        raise InputError(
            f"the key in {origin} has {odd[0]!r}, which no header can carry: make it of letters, "
            "digits and signs of ASCII, without spaces"
        )
    return key


@dataclass(frozen=True)
class Guard:
    """``key`` None needs none. ``hosts`` are names that requests may be sent to, without port;
    None takes any. ``origins`` are those of other pages that may ask, ``*`` for all."""

    key: str | None = None
    hosts: frozenset[str] | None = LOOPBACK_NAMES
    origins: tuple[str, ...] = ()

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Raises Refusal, 401 or 403. ``headers`` by their names in lower case."""
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            raise Refusal(
                403,
                f"the request was sent to the host {host[:200]!r}, which this server does not go "
                "by: ask for 127.0.0.1 or localhost, or start it with an API key",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and not self.allows(origin, host):
            raise Refusal(
                403,
                f"pages of {origin[:200]} may not use this server: start it with "
                "--cors-origin to allow them",
                code="origin_not_allowed",
            )
        if self.key is not None and not _is_open(path):
            self._check_key(headers)

    def allows(self, origin: str, host: str) -> bool:
        """Whether pages of this origin may ask."""
        return "*" in self.origins or origin in self.origins or self._is_own(origin, host)

    def cors(self, origin: str | None, host: str) -> dict[str, str]:
        """Headers that let a page elsewhere read the answer; none for the server's own."""
        if origin is None or self._is_own(origin, host) or not self.allows(origin, host):
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "x-request-id, retry-after",
            "vary": "Origin",
        }

    @staticmethod
    def preflight() -> dict[str, str]:
        """What a browser is told, besides, before it asks from a page elsewhere."""
        return {
            "access-control-allow-methods": "GET, POST",
            # The star is for what official clients add, and does not stand for the first.
            "access-control-allow-headers": "authorization, *",
            "access-control-max-age": "600",
        }

    @staticmethod
    def _is_own(origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:  # no address at all
            return False
        return parts.scheme in ("http", "https") and bool(host) and parts.netloc == host

    def _check_key(self, headers: Mapping[str, str]) -> None:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        assert self.key is not None
        # Of digests, so that not even the length of the key shows.
        if not hmac.compare_digest(_digest(given), _digest(self.key)):
            raise Refusal(
                401,
                "the API key is missing or wrong: send it as `Authorization: Bearer KEY` or "
                "`x-api-key: KEY`",
                code="invalid_api_key",
            )


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _name(host: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
