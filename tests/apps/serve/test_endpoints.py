"""Every path that is POSTed to, against a server that runs: its reply, its stream, its errors."""

import json

import pytest

from flashmoe.apps.serve.ask import Refusal
from flashmoe.apps.serve.endpoints import ENDPOINTS, shape_of
from tests.apps.serve.conftest import CHAT, asking, events_of

TEXT = "Emma was sitting one evening with her father when"
HELLO = {"role": "user", "content": "Hello"}
TOOL = {"type": "object", "properties": {"city": {"enum": ["Bath"]}}, "required": ["city"]}
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
BODIES = {
    CHAT: asking(TEXT),
    "/v1/completions": {"model": "demo", "prompt": TEXT, "max_tokens": 8, "temperature": 0},
    "/v1/responses": {
        "model": "demo",
        "input": TEXT,
        "max_output_tokens": 8,
        "temperature": 0,
        "reasoning": {"effort": "none"},
    },
    MESSAGES: {
        "model": "demo",
        "max_tokens": 8,
        "temperature": 0,
        "messages": [HELLO, {"role": "assistant", "content": TEXT}],
    },
}


@pytest.fixture(scope="module")
def client(site):
    with site.client() as client:
        yield client


def texts(value):
    """Every text of a reply, wherever its API has it."""
    if isinstance(value, list):
        return "".join(map(texts, value))
    if not isinstance(value, dict):
        return ""
    said = value.get("text") if isinstance(value.get("text"), str) else ""
    nested = ("choices", "message", "output", "content")
    content = value.get("content") if isinstance(value.get("content"), str) else ""
    return said + content + "".join(texts(value.get(name)) for name in nested)


def streamed(events):
    """Every text that events add."""
    said = ""
    for event in events:
        delta = event.get("delta")
        said += delta if isinstance(delta, str) else (delta or {}).get("text", "")
        for choice in event.get("choices", ()):
            said += choice.get("text", "") or choice.get("delta", {}).get("content", "")
    return said


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_says_what_the_reply_says(client, path):
    reply = client.post(path, json=BODIES[path])
    assert reply.status_code == 200, reply.text
    with client.stream("POST", path, json={**BODIES[path], "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert texts(reply.json()) == streamed(events_of(lines)) != ""


@pytest.mark.parametrize("path", [endpoint.path for endpoint in ENDPOINTS])
@pytest.mark.parametrize(("body", "status"), [({"tempo": 1}, 400), ({"model": "other"}, 404)])
def test_errors_are_of_the_apis_shape(client, path, body, status):
    whole = BODIES.get(path, {"model": "demo", "messages": [HELLO]})
    reply = client.post(path, json={**whole, **body})
    assert reply.status_code == status
    error = reply.json()
    assert (error.get("type") == "error") == path.startswith(MESSAGES)
    assert next(iter(body)) in error["error"]["message"] or "other" in error["error"]["message"]


def test_whose_shape_an_unknown_path_has():
    refusal = Refusal(404, "there is nothing")
    for path in (MESSAGES, COUNT, f"{MESSAGES}/batches"):
        assert shape_of(path)(refusal)["type"] == "error"
    for path in (CHAT, "/", "/v1/messagesx"):
        assert "type" not in shape_of(path)(refusal)
    anthropics = {"anthropic-version": "2023-06-01"}
    for path in ("/v1/models", "/v1/models/other", "/v1/files"):
        assert shape_of(path, anthropics)(refusal)["type"] == "error"
        assert "type" not in shape_of(path, {})(refusal)
    assert "type" not in shape_of(CHAT, anthropics)(refusal)


def test_a_model_that_is_not_there_is_told_as_it_was_asked_for(client):
    asked = {"anthropic-version": "2023-06-01"}
    error = client.get("/v1/models/other", headers=asked)
    assert (error.status_code, error.json()["error"]["type"]) == (404, "not_found_error")
    assert error.json()["type"] == "error"
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_a_prompt_is_scored(client):
    asked = {"model": "demo", "echo": True, "logprobs": 1, "temperature": 0}
    body = client.post("/v1/completions", json={**asked, "prompt": TEXT, "max_tokens": 0}).json()
    (choice,) = body["choices"]
    alone = choice["logprobs"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert "".join(alone["tokens"]) == TEXT
    assert alone["token_logprobs"][0] is None and alone["top_logprobs"][0] is None
    assert max(alone["token_logprobs"][1:]) < 0
    assert body["usage"]["completion_tokens"] == 0
    body = client.post("/v1/completions", json={**asked, "prompt": TEXT, "max_tokens": 3}).json()
    (choice,) = body["choices"]
    longer = choice["logprobs"]
    assert len(longer["tokens"]) == len(alone["tokens"]) + 3
    assert longer["token_logprobs"][: len(alone["tokens"])] == alone["token_logprobs"]
    assert choice["text"] == "".join(longer["tokens"])
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    plain = {"model": "demo", "prompt": TEXT, "temperature": 0, "max_tokens": 3}
    (choice,) = client.post("/v1/completions", json=plain).json()["choices"]
    assert longer["tokens"][-3:] and choice["text"] == "".join(longer["tokens"][-3:])


def test_anthropics_tools_and_counts(client):
    asked = {
        "model": "demo",
        "messages": [HELLO],
        "tools": [{"name": "look", "input_schema": TOOL}],
        "tool_choice": {"type": "tool", "name": "look"},
    }
    reply = client.post(MESSAGES, json={**asked, "max_tokens": 60}).json()
    (call,) = reply["content"]
    assert (reply["stop_reason"], call["name"], call["input"]) == (
        "tool_use",
        "look",
        {"city": "Bath"},
    )
    usage = reply["usage"]
    counted = client.post(COUNT, json=asked).json()
    assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


@pytest.mark.parametrize("bound", [2, 12])
@pytest.mark.parametrize("path", [CHAT, "/v1/responses", MESSAGES])
def test_a_call_that_is_cut_leaves_no_markup(client, path, bound):
    function = {"name": "look", "parameters": TOOL}
    more = {
        CHAT: {"tools": [{"type": "function", "function": function}], "max_tokens": bound,
               "tool_choice": "required"},
        "/v1/responses": {"tools": [{"type": "function", **function}], "max_output_tokens": bound,
                          "tool_choice": "required"},
        MESSAGES: {"tools": [{"name": "look", "input_schema": TOOL}], "max_tokens": bound,
                   "tool_choice": {"type": "any"}, "messages": [HELLO]},
    }[path]  # fmt: skip
    body = {**BODIES[path], **more}
    reply = client.post(path, json=body).json()
    with client.stream("POST", path, json={**body, "stream": True}) as answer:
        events = events_of([line for line in answer.iter_lines() if line])
    assert texts(reply) == streamed(events) == ""
    if path == CHAT:
        (choice,) = reply["choices"]
        assert choice["finish_reason"] == "length" and "tool_calls" not in choice["message"]
    elif path == MESSAGES:
        assert (reply["content"], reply["stop_reason"]) == ([], "max_tokens")
    else:
        assert (reply["output"], reply["status"]) == ([], "incomplete")


def test_anthropics_version_is_one_that_is_spoken(client):
    body = {"model": "demo", "messages": [HELLO]}
    for version, status in (("2023-06-01", 200), ("2026-10-21", 200), ("2023-01-01", 400)):
        reply = client.post(COUNT, json=body, headers={"anthropic-version": version})
        assert reply.status_code == status
    assert "anthropic-version is 2023-01-01" in json.loads(reply.text)["error"]["message"]


def test_models_are_told_in_both_apis_words(client):
    listed = client.get("/v1/models").json()
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["type"]) == ("demo", "model", "model")
    assert (listed["first_id"], listed["has_more"]) == ("demo", False)
