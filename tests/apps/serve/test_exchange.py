"""Requests that wait, go away, or do not read, against a server whose engine is slow."""

import contextlib
import http.client
import json
import select
import socket
import threading
import time

import pytest

from flashmoe.apps.serve.exchange import told
from flashmoe.apps.serve.room import TOKEN_BYTES
from flashmoe.progress import Progress
from tests.apps.serve.conftest import CHAT, asking, events_of, running, until

LAYERS = 8


@pytest.fixture
def slow(brake):
    """The engine takes 50 ms a layer."""
    brake.layer_s = 0.05
    yield brake
    brake.layer_s = 0.0


def posted(port, body):
    """A connection that has sent a request, and reads nothing."""
    data = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_the_worker_within_a_layer(site, slow, stream):
    connection = posted(site.port, asking(stream=stream, max_tokens=500))
    until(lambda: site.service.worker.is_busy)
    time.sleep(0.3)
    connection.close()
    left = slow.layers
    until(lambda: not site.service.worker.is_busy)
    assert slow.layers - left <= 2 * LAYERS  # what passed until the event loop had heard of it


def test_the_retry_of_a_cancelled_prompt_begins_where_that_was(engine, brake):
    text = "Emma was sitting one evening with her father. " * 80
    with running(engine) as site, site.client() as client:
        brake.layer_s = 0.05
        connection = posted(site.port, asking(text, stream=True))
        until(lambda: site.service.worker.is_busy)
        job = site.service.worker._running
        until(lambda: (p := job.channel.progress) is not None and p.done_tokens > 260)
        connection.close()
        until(lambda: not site.service.worker.is_busy)
        brake.layer_s = 0.0
        usage = client.post(CHAT, json=asking(text)).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 256


def test_who_waits_is_told_its_place_and_its_prompts_progress(engine, slow):
    with running(engine) as site, site.client() as client:
        first = posted(site.port, asking(stream=True, max_tokens=4))
        until(lambda: site.service.worker.is_busy)
        began = time.monotonic()
        with client.stream("POST", CHAT, json=asking("Hello " * 300, stream=True)) as answer:
            times, lines = [], []
            for line in answer.iter_lines():
                if line:
                    times.append(time.monotonic() - began)
                    lines.append(line)
        first.close()
    comments = [line.removeprefix(": ") for line in lines if line.startswith(":")]
    assert comments[0] == "queue 1" and times[0] < 1.5
    assert any(comment.startswith("prompt ") for comment in comments)
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    assert max(gaps) < 5
    assert lines[-1] == "data: [DONE]" and "error" not in events_of(lines)[-1]


def test_a_full_queue_is_said_so(engine, slow):
    with running(engine, waiting=2) as site, site.client() as client:
        held = [posted(site.port, asking(stream=True, max_tokens=50))]
        until(lambda: site.service.worker.is_busy)
        held.append(posted(site.port, asking(stream=True, max_tokens=50)))
        until(lambda: len(site.service.queue) == 1)
        answer = client.post(CHAT, json=asking())
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"]["code"] == "queue_full"
        for connection in held:
            connection.close()


def test_a_client_that_does_not_read_is_cut_off(engine, caplog):
    """What it leaves unread fills the kernel's buffers first: some 400 KB, of 2 KB a token."""
    with running(engine, write_s=0.3) as site:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", site.port))
        data = json.dumps(
            asking("Tell me of Emma.", stream=True, max_tokens=2000, logprobs=True,
                   top_logprobs=20, guided_regex="[a-z ]{4000,5000}")
        ).encode()  # fmt: skip
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        connection.sendall(head.encode() + data)
        until(lambda: site.service.worker.is_busy)
        until(lambda: not site.service.worker.is_busy, 60)
        assert b"flashmoe_cancelled_total 1.0" in site.service.metrics.text()
        assert caplog.text == ""
        connection.close()


def test_a_reply_that_takes_too_long_ends_with_an_error(engine, slow):
    with running(engine, request_s=0.5) as site, site.client() as client:
        answer = client.post(CHAT, json=asking(max_tokens=100))
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        with client.stream("POST", CHAT, json=asking(max_tokens=100, stream=True)) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert stream.status_code == 200
        assert events_of(lines)[-1]["error"]["code"] == "timeout"


def test_the_time_of_a_request_runs_from_its_head(engine, slow):
    """While another one is prepared it counts as well."""
    with running(engine, request_s=0.5) as site, site.client() as client:
        go = threading.Event()
        site.service.preparing.submit(go.wait, 20)
        began = time.monotonic()
        answer = client.post(CHAT, json=asking())
        assert time.monotonic() - began < 5
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        go.set()


def headed(port, length, path=CHAT):
    """A connection that has sent the head of a request, and no body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(head.encode())
    return connection


def answered(connection):
    """Status, headers and JSON of what comes on a connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.headers, json.loads(response.read())


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_a_body_that_drips_is_ended_in_the_apis_shape(engine, path):
    with running(engine, body_s=0.6) as site, headed(site.port, 1000, path) as connection:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(40):
                connection.sendall(b" ")
                if select.select([connection], [], [], 0.1)[0]:
                    break
        assert 0.4 < time.monotonic() - began < 3
        status, headers, body = answered(connection)
    assert status == 408 and headers["connection"] == "close"
    assert "0.6 seconds" in body["error"]["message"]
    assert (body.get("type") == "error") == (path == "/v1/messages")


def test_who_leaves_while_others_are_prepared_is_never_prepared(engine, monkeypatch):
    with running(engine) as site, site.client() as client:
        go, seen = threading.Event(), []
        real = site.service.prepare
        monkeypatch.setattr(
            site.service, "prepare", lambda *given: (seen.append(given), real(*given))[1]
        )
        site.service.preparing.submit(go.wait, 20)
        connection = posted(site.port, asking("x" * 2000))
        until(lambda: site.service.bodies.used_bytes > 2000)
        connection.close()
        until(lambda: site.service.bodies.used_bytes == 0)
        go.set()
        assert client.post(CHAT, json=asking()).status_code == 200
        assert len(seen) == 1


def test_who_leaves_while_it_waits_frees_its_place_at_once(engine, slow):
    with running(engine) as site:
        first = posted(site.port, asking(stream=True, max_tokens=500))
        until(lambda: site.service.worker.is_busy)
        waiting = [posted(site.port, asking(stream=stream)) for stream in (True, False)]
        until(lambda: len(site.service.queue) == 2)
        held = site.service.turns.used_bytes
        for connection in waiting:
            connection.close()
        until(lambda: len(site.service.queue) == 0, 2)
        until(lambda: site.service.turns.used_bytes < held / 2, 2)
        assert site.service.worker.is_busy and site.service.open_replies == 1
        first.close()


def test_bodies_that_there_is_no_room_for_are_refused_and_room_comes_back(engine):
    with running(engine) as site, site.client() as client:
        sizes, limits = site.service.sizes, site.service.limits
        most = sizes.bodies_bytes // limits.body_bytes
        half = [headed(site.port, limits.body_bytes) for _ in range(most)]
        for connection in half:
            connection.sendall(b" " * (limits.body_bytes - 1))
        until(lambda: site.service.bodies.used_bytes == most * (limits.body_bytes - 1))
        for path, body in ((CHAT, asking()), ("/v1/messages", asking())):
            answer = client.post(path, json=body)
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
            error = answer.json()["error"]
            assert "try again later" in error["message"]
            assert (answer.json().get("type") == "error") == (path == "/v1/messages")
        text = client.get("/metrics").text
        assert f'flashmoe_request_bytes{{part="bodies"}} {most * (limits.body_bytes - 1)}' in text
        for connection in half:
            connection.close()
        until(lambda: site.service.bodies.used_bytes == 0)
        assert client.post(CHAT, json=asking()).status_code == 200


def test_turns_that_there_is_no_room_for_are_refused(engine, slow):
    with running(engine) as site, site.client() as client:
        turns = site.service.turns
        first = posted(site.port, asking(stream=True, max_tokens=500))
        until(lambda: turns.used_bytes > 0)
        others = turns.most_bytes - turns.used_bytes - 100
        assert turns.take(others)
        answer = client.post(CHAT, json=asking())
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"]["code"] == "queue_full"
        turns.give(others)
        first.close()
        slow.layer_s = 0.0
        assert client.post(CHAT, json=asking()).status_code == 200
        until(lambda: turns.used_bytes == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_there_is_no_room_for_ends_in_its_apis_error(engine, stream):
    with running(engine) as site, site.client() as client:
        replies = site.service.replies
        others = replies.most_bytes - 2000
        assert replies.take(others)
        body = asking(logprobs=True, top_logprobs=5, stream=stream)
        answer = client.post(CHAT, json=body)
        error = (events_of(answer.text.splitlines())[-1] if stream else answer.json())["error"]
        assert answer.status_code == (200 if stream else 503)
        assert error["code"] == "server_busy"
        replies.give(others)
        assert client.post(CHAT, json=body).status_code == 200
        until(lambda: replies.used_bytes == 0)


def test_a_long_reply_nobody_reads_is_held_and_let_go(engine):
    """Not streamed: it waits whole, within its share, until its client is cut off."""
    with running(engine, write_s=0.4) as site:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", site.port))
        data = json.dumps(
            asking("Tell me of Emma.", max_tokens=400, logprobs=True, top_logprobs=20,
                   guided_regex="[a-z ]{2000,5000}")
        ).encode()  # fmt: skip
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        connection.sendall(head.encode() + data)
        until(lambda: site.service.worker.is_busy)
        until(lambda: not site.service.worker.is_busy, 60)
        assert site.service.replies.used_bytes >= 400 * 21 * TOKEN_BYTES
        until(lambda: site.service.replies.used_bytes == 0, 10)
        connection.close()


def test_a_proxy_says_whose_a_request_is(engine, slow):
    """Half of the queue is one client's; behind a proxy that is believed they are told apart."""
    with running(engine, proxies=["127.0.0.1"], waiting=2) as site, site.client() as client:
        held = [posted(site.port, asking(stream=True, max_tokens=100))]
        until(lambda: site.service.worker.is_busy)
        held.append(posted(site.port, asking(stream=True, max_tokens=100)))
        until(lambda: len(site.service.queue) == 1)
        assert client.post(CHAT, json=asking()).status_code == 429
        other = {"x-forwarded-for": "203.0.113.7"}
        with client.stream("POST", CHAT, json=asking(stream=True), headers=other) as answer:
            assert answer.status_code == 200
        for connection in held:
            connection.close()


def test_many_at_once_each_get_their_own(site):
    """Every reply says which request it belongs to: its logarithm of probability of one word."""
    answers = {}

    def ask(index):
        with site.client() as client:
            word = f"x{index:02}"
            body = asking("Say it.", max_tokens=12, guided_regex=f"{word}( {word}){{2}}")
            answers[index] = client.post(CHAT, json=body).json()

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for index in range(12):
        content = answers[index]["choices"][0]["message"]["content"]
        assert f"x{index:02} x{index:02}".startswith(content[:7])


def test_progress_in_words():
    assert (
        told(Progress(1234.5, 16000, 0, 20.0)) == "prompt 1234/16000 tokens, 61.7 tok/s, 239 s left"
    )
    assert told(Progress(0, 16000, 0, 0.0)) == "prompt 0/16000 tokens"
