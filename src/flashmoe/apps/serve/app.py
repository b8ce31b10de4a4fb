"""The server's paths, and the door before them.

Owns routing, the order of the checks, what is answered while there is no place or no time left,
and that every error leaves in the shape of the API that was asked. What is behind a path is its
own module's.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router

from flashmoe.apps.serve.ask import Refusal
from flashmoe.apps.serve.endpoints import ENDPOINTS, shape_of
from flashmoe.apps.serve.exchange import Posted, answer
from flashmoe.apps.serve.guard import Guard
from flashmoe.apps.serve.limits import Gone, Receive
from flashmoe.apps.serve.metrics import CONTENT_TYPE
from flashmoe.apps.serve.openapi import document
from flashmoe.apps.serve.outlet import Outlet, Scope, Send
from flashmoe.apps.serve.refusals import busy, refusal_of, stopping
from flashmoe.apps.serve.service import Service

WATCHED = frozenset({"/health", "/metrics"})
"""What is answered as ever while the server is full, or stops: who watches it should see that."""

_PHRASES = {404: "there is nothing at {path}", 405: "{path} takes {allowed}, not {method}"}


def build(service: Service, guard: Guard, pages: Sequence[BaseRoute] = ()) -> Door:
    """The ASGI application. ``pages`` are routes of the pages for people."""
    routes: list[BaseRoute] = [
        Route(endpoint.path, Posted(service, endpoint), methods=["POST"]) for endpoint in ENDPOINTS
    ]
    routes += _plain_routes(service)
    return Door(Router([*routes, *pages], redirect_slashes=False), service, guard)


def _plain_routes(service: Service) -> list[BaseRoute]:
    """What is only looked at."""
    described = document(service.served.name)

    async def health(request: Request) -> Response:
        body = {
            "status": "stopping" if service.is_stopping else "ok",
            "model": service.served.name,
            "waiting": len(service.queue),
            "busy": service.worker.is_busy,
        }
        if service.is_stopping:
            headers = {"retry-after": str(stopping().retry_after)}
            return JSONResponse(body, 503, headers)
        return JSONResponse(body)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def models(request: Request) -> Response:
        name = service.served.name
        pages = {"has_more": False, "first_id": name, "last_id": name}
        return JSONResponse({"object": "list", "data": [service.described()], **pages})

    async def model(request: Request) -> Response:
        service.check_model(request.path_params["name"])
        return JSONResponse(service.described())

    async def openapi(request: Request) -> Response:
        return JSONResponse(described)

    return [
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/openapi.json", openapi),
    ]


class Door:
    """Everything comes in and goes out here."""

    def __init__(self, inside: Router, service: Service, guard: Guard) -> None:
        self._inside = inside
        self._service = service
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application; HTTP alone."""
        if scope["type"] != "http":
            return
        scope["path"] = _path(scope["path"])
        scope["app"] = self  # so that the router raises what it has no route for
        scope["state"] = {**scope.get("state", {}), "id": secrets.token_hex(12)}
        out = Outlet(send, scope, self._headers(scope), self._service.limits.write_s)
        try:
            await self._enter(scope, receive, out)
        except Gone:
            out.status = out.status or 499
        except Exception as error:
            refusal = _http(error, scope) if isinstance(error, HTTPException) else refusal_of(error)
            if out.status:  # too late for an error of its own
                raise
            await _refuse(out, refusal, scope)
        finally:
            route = scope.get("route")
            path = route.path if isinstance(route, Route) else "other"
            self._service.metrics.request(path, out.status or 500)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            self._guard.check("/", headers)  # whose page it is; the key comes with the request
            await send({"type": "http.response.start", "status": 204, "headers": [
                (name.encode(), value.encode()) for name, value in self._guard.preflight().items()
            ]})  # fmt: skip
            await send({"type": "http.response.body", "body": b""})
            return
        self._guard.check(scope["path"], headers)
        if scope["path"] not in WATCHED:
            if self._service.is_stopping:
                raise stopping()
            if scope["state"].get("crowded"):
                raise busy("connections that are open")
        await self._inside(scope, receive, send)

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        given = _headers(scope)
        ours = {
            "x-content-type-options": "nosniff",
            "x-request-id": scope["state"]["id"],
            "request-id": scope["state"]["id"],
            **self._guard.cors(given.get("origin"), given.get("host", "")),
        }
        if self._service.is_stopping or scope["state"].get("crowded"):
            ours["connection"] = "close"
        return [(name.encode(), value.encode()) for name, value in ours.items()]


def _path(path: str) -> str:
    """The path without a slash at its end: no two paths here differ in that alone, and a redirect
    would lose the body of some clients' requests, and the key of others'."""
    return path.removesuffix("/") or "/"


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _http(error: HTTPException, scope: Scope) -> Refusal:
    allowed = (error.headers or {}).get("Allow", "")
    text = _PHRASES.get(error.status_code, error.detail)
    message = text.format(path=scope["path"][:200], allowed=allowed, method=scope["method"])
    code = {404: "unknown_path", 405: "method_not_allowed"}.get(error.status_code)
    return Refusal(error.status_code, message, code=code)


async def _refuse(send: Send, refusal: Refusal, scope: Scope) -> None:
    headers = {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.status in (408, 413):
        headers["connection"] = "close"  # what is left of the body is not read
    shape = shape_of(scope["path"], _headers(scope))
    await answer(send, refusal.status, shape(refusal), headers)
