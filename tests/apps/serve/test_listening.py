"""Where the server listens, what it does with nonsense, and how it ends."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from flashmoe.apps.serve.listening import address_of, bound, is_everywhere, is_loopback
from flashmoe.errors import InputError
from tests.apps.serve.conftest import CHAT, asking, running, until


def test_addresses():
    with bound("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert is_loopback(listener) and address_of(listener) == f"http://127.0.0.1:{port}"
        assert not is_everywhere(listener)
    with bound("0.0.0.0", 0) as listener:
        port = listener.getsockname()[1]
        assert not is_loopback(listener) and is_everywhere(listener)
        assert address_of(listener) == f"http://127.0.0.1:{port}"


def test_every_ipv6_address_is_shown_as_one_that_opens():
    try:
        listener = bound("::", 0)
    except InputError:
        pytest.skip("this machine has no IPv6")
    with listener:
        port = listener.getsockname()[1]
        assert is_everywhere(listener) and address_of(listener) == f"http://[::1]:{port}"


def test_an_address_that_cannot_be_had_is_named_with_the_mend(monkeypatch):
    with bound("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        words = f"cannot listen at 127.0.0.1 port {port}: another program listens there.*--port"
        with pytest.raises(InputError, match=words):
            bound("127.0.0.1", port)
    with pytest.raises(InputError, match=r"192\.0\.2\.1 .*no address of this machine.*--host 127"):
        bound("192.0.2.1", 0)
    with pytest.raises(InputError, match=r"no address is known for no\.such\.host\.invalid"):
        bound("no.such.host.invalid", 0)

    def forbidden(*given, **more):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", forbidden)
    with pytest.raises(InputError, match=r"port 80: .*below 1024.*--port 1024"):
        bound("127.0.0.1", 80)


def test_what_is_no_http_is_told_so_in_json(site):
    with socket.create_connection(("127.0.0.1", site.port), timeout=20) as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 400 ") and b'"invalid_http"' in answer


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: local"])
def test_a_connection_that_asks_nothing_is_closed(engine, sent):
    with (
        running(engine, idle_s=0.2) as site,
        socket.create_connection(("127.0.0.1", site.port), timeout=20) as connection,
    ):
        connection.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def asked(site, answers, **more):
    def ask():
        with site.client() as client:
            answers.append(client.post(CHAT, json=asking(**more)))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_stopping_lets_what_is_under_way_finish_and_refuses_what_waits(engine, brake):
    answers: list[httpx.Response] = []
    brake.layer_s = 0.02
    try:
        with running(engine, grace_s=30) as site:
            first = asked(site, answers, max_tokens=6)
            until(lambda: site.service.worker.is_busy)
            second = asked(site, answers)
            until(lambda: len(site.service.queue) == 1)
            site.end()
            second.join(20)
            assert answers[0].status_code == 503
            assert answers[0].json()["error"]["code"] == "server_stopping"
            assert site.told == ["stopping: waiting for 1 reply (Ctrl-C again stops at once)"]
            first.join(20)
            assert answers[1].status_code == 200
            site.thread.join(20)
            assert not site.thread.is_alive()
    finally:
        brake.layer_s = 0.0


def test_until_the_last_reply_is_out_whoever_comes_hears_that_the_server_stops(engine, brake):
    answers: list[httpx.Response] = []
    brake.layer_s = 0.02
    try:
        with running(engine, grace_s=30) as site:
            first = asked(site, answers, max_tokens=20)
            until(lambda: site.service.worker.is_busy)
            site.end()
            until(lambda: site.service.is_stopping)
            with site.client() as client:
                for ask in (
                    lambda: client.get("/health"),
                    lambda: client.post(CHAT, json=asking()),
                    lambda: client.post("/v1/messages", json=asking()),
                    lambda: client.get("/v1/models"),
                ):
                    answer = ask()
                    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
                    assert answer.headers["connection"] == "close"
                assert client.get("/health").json()["status"] == "stopping"
                assert b"flashmoe_busy 1.0" in client.get("/metrics").content
            assert site.service.worker.is_busy, "the reply has not ended too soon for this test"
            brake.layer_s = 0.0
            first.join(20)
            assert answers[0].status_code == 200
            site.thread.join(20)
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.1", site.port), timeout=5)
    finally:
        brake.layer_s = 0.0


def test_a_second_signal_does_not_wait(engine, brake):
    answers: list[httpx.Response] = []
    brake.layer_s = 0.02
    try:
        with running(engine, grace_s=600) as site:
            first = asked(site, answers, max_tokens=2000)
            until(lambda: site.service.worker.is_busy)
            site.end()
            until(lambda: site.service.is_stopping)
            site.end()
            first.join(20)
            assert answers[0].status_code == 503
            site.thread.join(20)
            assert not site.thread.is_alive()
    finally:
        brake.layer_s = 0.0


def test_a_server_without_work_ends_at_once_and_says_nothing_of_waiting(engine):
    with running(engine, grace_s=600) as site:
        site.end()
        site.thread.join(10)
        assert not site.thread.is_alive() and site.told == []


def test_what_takes_longer_than_the_grace_is_cancelled(engine, brake):
    answers: list[httpx.Response] = []
    brake.layer_s = 0.05
    try:
        with running(engine, grace_s=0.2) as site:
            first = asked(site, answers, max_tokens=500)
            until(lambda: site.service.worker.is_busy)
            site.end()
            first.join(20)
            assert answers[0].status_code == 503
    finally:
        brake.layer_s = 0.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_0(tmp_path, number):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "flashmoe", "serve", "demo", "--port", "0"]
    command[1:3] = ["-c", "import sys; from flashmoe.apps import main; sys.exit(main())"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("serving demo at http://127.0.0.1:")
        url = line.split()[3].rstrip(",")
        line = process.stderr.readline()
        assert line == f"the page is at {url}/, the API at {url}/v1\n"
        assert httpx.get(f"{url}/", timeout=60).status_code == 200
        assert httpx.post(f"{url}{CHAT}", json=asking(), timeout=60).status_code == 200
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(30) == 0 and time.monotonic() - began < 20
        assert process.stderr.read() == "stopped\n"
    finally:
        process.kill()
        process.stderr.close()
    assert (tmp_path / "flashmoe" / "prefixes").is_dir()
