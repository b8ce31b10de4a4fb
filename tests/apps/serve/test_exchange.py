"""Requests that wait, go away, or do not read, against a server whose engine is slow."""

import json
import socket
import threading
import time

import pytest

from flashmoe.apps.serve.exchange import told
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
        held = [posted(site.port, asking(stream=True, max_tokens=50)) for _ in range(2)]
        until(lambda: site.service.worker.is_busy and len(site.service.queue) == 1)
        answer = client.post(CHAT, json=asking())
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"]["code"] == "queue_full"
        for connection in held:
            connection.close()


def test_a_client_that_does_not_read_is_cut_off(engine):
    """What it leaves unread fills the kernel's buffers first, so these are made small."""
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
        connection.close()


def test_a_reply_that_takes_too_long_ends_with_an_error(engine, slow):
    with running(engine, request_s=0.5) as site, site.client() as client:
        answer = client.post(CHAT, json=asking(max_tokens=100))
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        with client.stream("POST", CHAT, json=asking(max_tokens=100, stream=True)) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert stream.status_code == 200
        assert events_of(lines)[-1]["error"]["code"] == "timeout"


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
