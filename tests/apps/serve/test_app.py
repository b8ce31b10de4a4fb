"""Paths, statuses and the shape of every error, against a server that runs."""

import json

import pytest

from flashmoe.apps.serve.guard import Guard
from tests.apps.serve.conftest import CHAT, asking, events_of, running


@pytest.fixture(scope="module")
def client(site):
    with site.client() as client:
        yield client


def test_a_reply(client):
    answer = client.post(CHAT, json=asking())
    body = answer.json()
    assert answer.status_code == 200 and answer.headers["x-request-id"]
    assert body["model"] == "demo" and body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 8


def test_a_stream_says_the_same(client):
    whole = client.post(CHAT, json=asking()).json()["choices"][0]["message"]["content"]
    body = asking(stream=True, stream_options={"include_usage": True}, logprobs=True)
    with client.stream("POST", CHAT, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    events = events_of(lines)
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == whole
    assert lines[-1] == "data: [DONE]" and events[-1]["usage"]["completion_tokens"] == 8
    tokens = [
        token["token"]
        for event in events
        for choice in event["choices"]
        for token in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert "".join(tokens) == whole


def test_an_answer_in_a_form(client):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = asking(response_format=form, max_tokens=40, temperature=1, seed=1)
    content = client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    assert set(json.loads(content)) == {"a"}


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "code"),
    [
        ("POST", CHAT, b"{", {}, 400, "invalid_json"),
        ("POST", CHAT, b'{"a": "\xff"}', {}, 400, None),
        ("POST", CHAT, b"{}", {}, 400, "missing_required_parameter"),
        ("POST", CHAT, b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        ("POST", CHAT, b"{}", {"content-encoding": "gzip"}, 415, "unsupported_media_type"),
        ("POST", CHAT, b" " * (65 << 10), {}, 413, "request_too_large"),
        ("GET", CHAT, b"", {}, 405, "method_not_allowed"),
        ("GET", "/v1/nothing", b"", {}, 404, "unknown_path"),
        ("POST", "/v1/models/other", b"", {}, 405, "method_not_allowed"),
        ("GET", "/v1/models/other", b"", {}, 404, "model_not_found"),
        ("GET", "/health", b"", {"host": "evil.example"}, 403, "host_not_allowed"),
        ("GET", "/health", b"", {"origin": "http://evil.example"}, 403, "origin_not_allowed"),
    ],
)
def test_errors_have_a_shape(client, method, path, content, headers, status, code):
    given = {"content-type": "application/json", **headers}
    answer = client.request(method, path, content=content, headers=given)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert error["message"] and "type" in error and "param" in error


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"model": "other"}, "model", "model_not_found"),
        ({"messages": [{"role": "user", "content": "a " * 9000}]}, "messages",
         "context_length_exceeded"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content",
         "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        (
            {"response_format": {"type": "json_schema",
                                 "json_schema": {"schema": {"type": "nonsense"}}}},
            "response_format.json_schema.schema",
            "invalid_json_schema",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_store_cannot_do_is_refused_before_a_stream_begins(
    client, more, param, code, stream
):
    content = json.dumps(asking(stream=stream, **more))
    answer = client.post(CHAT, content=content, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code in (400, 404)
    assert (error["param"], error["code"]) == (param, code)


def test_what_is_only_looked_at(client):
    assert client.get("/health").json()["status"] == "ok"
    (model,) = client.get("/v1/models").json()["data"]
    assert client.get("/v1/models/demo").json() == model and model["id"] == "demo"
    document = client.get("/openapi.json").json()
    assert document["paths"][CHAT]["post"]["requestBody"]
    metrics = client.get("/metrics").text
    names = "tokens_total time_to_first_token_seconds_count hit_rate read_bytes read_wait_seconds"
    for name in (*names.split(), "queue_length", "memory_bytes", "requests_total"):
        assert f"\nflashmoe_{name}" in metrics


def test_a_slash_at_the_end_of_a_path_says_nothing(client):
    for path in ("/v1/models", "/v1/models/demo", "/openapi.json"):
        answer = client.get(f"{path}/")
        assert (answer.status_code, answer.json()) == (200, client.get(path).json())
    assert client.get("/health/").json()["status"] == "ok"
    whole = client.post(CHAT, json=asking()).json()["choices"]
    assert client.post(f"{CHAT}/", json=asking()).json()["choices"] == whole
    for path in ("/v1/nothing/", "/v1/models//"):
        assert client.get(path).json()["error"]["code"] in ("unknown_path", "model_not_found")
    answer = client.post("/v1/messages/", json={})
    assert answer.status_code == 400 and answer.json()["type"] == "error", "in the API's shape"
    assert client.get("//").text == client.get("/").text != ""


def test_a_slash_at_the_end_opens_no_door(engine):
    with running(engine, Guard("secret", hosts=None)) as site, site.client() as client:
        for path in ("/v1/models/", "/metrics/", f"{CHAT}/"):
            assert client.get(path).status_code == 401
        assert client.get("/health/").status_code == 200


def test_a_key_is_wanted_where_there_is_one(engine):
    with running(engine, Guard("secret", hosts=None)) as site, site.client() as client:
        refused = client.post(CHAT, json=asking())
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/health").status_code == 200
        keyed = {"authorization": "Bearer secret"}
        assert client.post(CHAT, json=asking(), headers=keyed).status_code == 200


def test_a_page_elsewhere_may_be_let_in(engine):
    guard = Guard(origins=("https://friend.example",))
    with running(engine, guard) as site, site.client() as client:
        asks = {"origin": "https://friend.example", "access-control-request-method": "POST"}
        preflight = client.options(CHAT, headers=asks)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://friend.example"
        answer = client.get("/health", headers={"origin": "https://friend.example"})
        assert answer.headers["access-control-allow-origin"] == "https://friend.example"
        asks["origin"] = "https://foe.example"
        assert client.options(CHAT, headers=asks).status_code == 403
