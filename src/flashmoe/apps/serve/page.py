"""The page at ``/``: its files, as they lie in ``web/``, and what a browser may do with them.

Owns the routes and their headers. Knows no model: everything on the page comes from the same
endpoints that any client uses, and from ``/map``. The files hold nothing secret and need no key.

Invariant: only what was in ``web/`` at the start is served, from memory; the page can neither load
nor send anything elsewhere, nor run a script, or take a style, that is not one of these files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

WEB = Path(__file__).parent / "web"

TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text ever becomes markup: a script that tries is stopped by the browser.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cache-Control": "no-cache",  # asked for again each time, and answered with 304
}


@dataclass(frozen=True)
class File:
    """One file of the page."""

    body: bytes
    media_type: str
    tag: str

    def answer(self, request: Request) -> Response:
        """The file, or that the browser has it already."""
        headers = {**HEADERS, "ETag": self.tag}
        known = request.headers.get("if-none-match", "")
        if self.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers=headers, media_type=self.media_type)


def routes() -> list[Route]:
    """``/`` and ``/web/NAME``."""
    files = {path.name: _read(path) for path in sorted(WEB.iterdir()) if path.suffix in TYPES}

    async def index(request: Request) -> Response:
        return files["index.html"].answer(request)

    async def named(request: Request) -> Response:
        file = files.get(request.path_params["name"])
        if file is None:
            return PlainTextResponse("The page has no such file.\n", 404, headers=dict(HEADERS))
        return file.answer(request)

    return [Route("/", index, methods=["GET"]), Route("/web/{name}", named, methods=["GET"])]


def _read(path: Path) -> File:
    body = path.read_bytes()
    return File(body, TYPES[path.suffix], f'"{xxhash.xxh3_64_hexdigest(body)}"')
