"""Connections that are too many: told so, and, where there are far too many, cut off."""

import contextlib
import http.client
import json
import socket

from flashmoe.apps.serve.room import SPARE_CONNECTIONS
from tests.apps.serve.conftest import CHAT, asking, running, until


def connected(site):
    return socket.create_connection(("127.0.0.1", site.port), timeout=20)


def asked(connection, method, path, body=b""):
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response, json.loads(response.read())


def test_one_connection_too_many_is_told_so_and_watching_goes_on(engine):
    with running(engine, connections=3) as site, contextlib.ExitStack() as held:
        open_now = site.listening.server_state.connections
        for _ in range(3):
            held.enter_context(connected(site))
        until(lambda: len(open_now) == 3)
        body = json.dumps(asking()).encode()
        for path in (CHAT, "/v1/messages"):
            with connected(site) as late:
                response, told = asked(late, "POST", path, body)
                assert response.status == 503 and int(response.headers["retry-after"]) > 0
                assert response.headers["connection"] == "close"
                assert "connections" in told["error"]["message"]
                assert (told.get("type") == "error") == (path == "/v1/messages")
                assert late.recv(1) == b""
        with connected(site) as watching:
            response, told = asked(watching, "GET", "/health")
            assert response.status == 200 and told["status"] == "ok"
        held.close()
        until(lambda: not open_now)
        with site.client() as client:
            assert client.post(CHAT, json=asking()).status_code == 200


def test_far_too_many_are_cut_off(engine):
    with running(engine, connections=2) as site, contextlib.ExitStack() as held:
        open_now = site.listening.server_state.connections
        for _ in range(2 + SPARE_CONNECTIONS):
            held.enter_context(connected(site))
        until(lambda: len(open_now) == 2 + SPARE_CONNECTIONS)
        for _ in range(5):
            with connected(site) as late, contextlib.suppress(ConnectionError):
                assert late.recv(1) == b""
        until(lambda: len(open_now) == 2 + SPARE_CONNECTIONS)
