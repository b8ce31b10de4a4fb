"""The way in and out: what is checked before a request waits, and what becomes of it."""

import json
from dataclasses import replace

import pytest

from flashmoe.apps.serve.ask import Refusal
from flashmoe.apps.serve.channel import Channel
from flashmoe.apps.serve.endpoints import ENDPOINTS
from flashmoe.apps.serve.job import Job
from flashmoe.apps.serve.room import Share
from flashmoe.apps.serve.service import Served, Service
from tests.apps.serve.conftest import LIMITS, asking

CHAT, COMPLETIONS = ENDPOINTS[0], ENDPOINTS[1]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture
def service(engine):
    service = Service(engine, Served("demo", created=86_400), LIMITS)
    yield service
    service.stop()


def prepared(service, endpoint=CHAT, **more):
    body = asking(**more) if endpoint is CHAT else more
    return service.prepare(endpoint, json.dumps(body).encode())


def refused(service, endpoint=CHAT, **more):
    with pytest.raises(Refusal) as caught:
        prepared(service, endpoint, **more)
    return caught.value


def job(service, made, source="a"):
    channel = Channel(lambda: None, streams=False)
    share = Share(service.replies)
    return Job(made.opening, made.sampling, None, channel, share, source=source)


def test_a_request_is_weighed_with_what_waits_for_its_reply(service):
    plain = prepared(service).size_bytes
    assert prepared(service, text="Emma " * 300).size_bytes > plain + 300 * 40
    with_tool = prepared(service, tools=[TOOL]).size_bytes
    assert with_tool > plain + (128 << 10)


def test_tools_that_take_more_memory_than_there_is_are_refused(service):
    many = {f"name{index}": {"type": "string"} for index in range(1000)}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": many}}}
    service.sizes = replace(service.sizes, turns_bytes=1 << 20)
    refusal = refused(service, tools=[tool])
    assert refusal.status == 413 and "tools" in refusal.message


def test_a_body_that_becomes_too_much_is_refused(service):
    service.sizes = replace(service.sizes, parsed_bytes=100_000)
    refusal = refused(service, metadata={"a": [[]] * 1000})
    assert refusal.status == 413 and "of memory" in refusal.message


def test_a_reply_has_as_many_tokens_as_its_probabilities_have_room(service):
    most = service.sizes.reply_tokens
    assert prepared(service, max_tokens=None).sampling.max_tokens is None
    asked = prepared(service, logprobs=True, max_tokens=None).sampling
    assert asked.max_tokens == most
    asked = prepared(service, logprobs=True, top_logprobs=20, max_tokens=100_000).sampling
    assert asked.max_tokens == most // 21
    asked = prepared(service, logprobs=True, top_logprobs=20, max_tokens=7).sampling
    assert asked.max_tokens == 7


def test_an_echo_whose_probabilities_have_no_room_is_refused(service):
    echo = {"model": "demo", "prompt": "Emma was", "echo": True, "logprobs": 5, "max_tokens": 0}
    assert prepared(service, COMPLETIONS, **echo).ask.generates is False
    service.sizes = replace(service.sizes, reply_bytes=16 << 10)
    long = {**echo, "prompt": "Emma was sitting one evening with her father"}
    refusal = refused(service, COMPLETIONS, **long)
    assert (refusal.status, refusal.param) == (400, "echo")


def test_a_model_of_another_name(service):
    refusal = refused(service, model="other")
    assert (refusal.status, refusal.code) == (404, "model_not_found")
    service.served = Served("demo", any_name=True)
    assert prepared(service, model="other").ask.model == "other"


def test_who_leaves_loses_its_place(service):
    """Nobody takes from the queue here."""
    made = prepared(service)
    first, second = job(service, made), job(service, made)
    service.enter(first)
    service.enter(second)
    assert (service.open_replies, service.queue.place(second)) == (2, 1)
    service.leave(first)
    assert (service.open_replies, service.queue.place(second)) == (1, 0)
    (end,) = first.channel.take()
    assert end.status == 499 and first.cancelled is end


def test_stopping_refuses_what_comes_and_what_waits(service):
    made = prepared(service)
    waiting = job(service, made)
    service.enter(waiting)
    service.stop()
    (end,) = waiting.channel.take()
    assert (end.status, end.code) == (503, "server_stopping")
    with pytest.raises(Refusal) as caught:
        service.enter(job(service, made))
    assert caught.value.status == 503 and service.open_replies == 1


def test_the_model_is_described_with_its_date(service):
    told = service.described()
    assert told["created"] == 86_400 and told["created_at"] == "1970-01-02T00:00:00Z"
    assert told["context_length"] == service.engine.plan.context_tokens
