"""Requests before the store: whose fault a refusal is, and what holds where nothing is said."""

import pytest

from flashmoe.apps.serve import anthropic, openai_chat, openai_completions, openai_responses
from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.opening import opened
from flashmoe.engine import Engine
from tests.apps.conftest import write_speaking_store

PLAIN = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
LONG = "a " * 9000
ODD = {"type": "object", "properties": {"a": {"type": "nonsense"}}}
SOUND = {"type": "object", "properties": {"a": {"type": "string"}}}
HI = [{"role": "user", "content": "Hi"}]
ALONE = [{"role": "assistant", "content": "a"}]


@pytest.fixture(scope="module")
def mute(tmp_path_factory):
    """An engine whose chat template knows neither reasoning nor tools."""
    store = write_speaking_store(tmp_path_factory.mktemp("mute") / "store", PLAIN)
    with Engine.open(store, grammars=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """An engine whose chat template has a form of calls of its own."""
    template = "{% for t in tools or [] %}CAN {{ t.function.name }} {% endfor %}" + PLAIN
    store = write_speaking_store(tmp_path_factory.mktemp("foreign") / "store", template)
    with Engine.open(store, grammars=True) as engine:
        yield engine


def functions(*schemas, flat=False):
    named = [{"name": f"tool{at}", "parameters": one} for at, one in enumerate(schemas)]
    if flat:
        return [{"type": "function", **one} for one in named]
    return [{"type": "function", "function": one} for one in named]


def own(*schemas):
    return [{"name": f"tool{at}", "input_schema": one} for at, one in enumerate(schemas)]


def form(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def said(text):
    return {"messages": [{"role": "user", "content": text}]}


APIS = {
    "chat": (openai_chat.read, {"messages": HI}),
    "completions": (openai_completions.read, {"prompt": "Hi"}),
    "responses": (openai_responses.read, {"input": "Hi"}),
    "messages": (anthropic.read, {"messages": HI, "max_tokens": 9}),
}
TOO_LONG, BAD = "context_length_exceeded", "invalid_value"
TOOL, SCHEMA = "invalid_function_parameters", "invalid_json_schema"


@pytest.mark.parametrize(
    ("api", "more", "param", "code"),
    [
        ("chat", said(LONG), "messages", TOO_LONG),
        ("completions", {"prompt": LONG}, "prompt", TOO_LONG),
        ("completions", {"prompt": [LONG]}, "prompt[0]", TOO_LONG),
        ("responses", {"input": LONG}, "input", TOO_LONG),
        ("messages", said(LONG), "messages", TOO_LONG),
        ("chat", {"messages": ALONE}, "messages", BAD),
        ("completions", {"prompt": [1, 4096]}, "prompt[1]", BAD),
        ("completions", {"prompt": [[4096, 1]]}, "prompt[0][0]", BAD),
        ("chat", {"tools": functions(SOUND, ODD)}, "tools[1].function.parameters", TOOL),
        ("responses", {"tools": functions(ODD, flat=True)}, "tools[0].parameters", TOOL),
        ("messages", {"tools": own(SOUND, SOUND, ODD)}, "tools[2].input_schema", TOOL),
        ("chat", {"tools": [*functions(SOUND), *functions(SOUND)]}, "tools", BAD),
        ("chat", {"response_format": form(ODD)}, "response_format.json_schema.schema", SCHEMA),
        (
            "chat",
            {"response_format": form(ODD), "tools": functions(SOUND)},
            "response_format.json_schema.schema",
            SCHEMA,
        ),
        ("chat", {"guided_regex": "(?=a)b"}, "guided_regex", BAD),
        (
            "responses",
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": ODD}}},
            "text.format.schema",
            SCHEMA,
        ),
        (
            "messages",
            {"output_config": {"format": {"type": "json_schema", "schema": ODD}}},
            "output_config.format.schema",
            SCHEMA,
        ),
    ],
)
def test_a_refusal_names_the_parameter_at_fault(engine, api, more, param, code):
    read, body = APIS[api]
    with pytest.raises(BadRequest) as caught:
        opened(engine, read({"model": "demo", **body, **more}))
    assert (caught.value.param, caught.value.code) == (param, code)
    assert "Budget" not in caught.value.message


@pytest.mark.parametrize(
    ("api", "more", "param"),
    [
        ("chat", {"reasoning_effort": "low"}, "reasoning_effort"),
        (
            "chat",
            {"chat_template_kwargs": {"enable_thinking": True}},
            "chat_template_kwargs.enable_thinking",
        ),
        ("responses", {"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ("messages", {"thinking": {"type": "adaptive"}}, "thinking"),
    ],
)
def test_a_model_that_cannot_think_is_not_asked_to(mute, api, more, param):
    read, body = APIS[api]
    with pytest.raises(BadRequest) as caught:
        opened(mute, read({"model": "mute", **body, **more}))
    assert caught.value.param == param


def test_tools_that_no_call_is_known_for_are_at_fault_all_together(foreign):
    read, body = APIS["chat"]
    with pytest.raises(BadRequest, match="no form of calls that is known") as caught:
        opened(foreign, read({"model": "foreign", **body, "tools": functions(SOUND, SOUND)}))
    assert caught.value.param == "tools"


def test_a_prompt_of_ids_that_are_words_is_taken(engine):
    read, _ = APIS["completions"]
    last = engine.tokenizer.vocab_size - 1
    assert opened(engine, read({"model": "demo", "prompt": [1, last]})).ids == (1, last)


@pytest.mark.parametrize(
    ("api", "more"),
    [
        ("chat", {"reasoning_effort": "none"}),
        ("chat", {"reasoning_effort": "high"}),
        ("chat", {"chat_template_kwargs": {"enable_thinking": True}}),
        ("responses", {"reasoning": {"effort": "none"}}),
        ("responses", {"reasoning": {"effort": "high"}}),
        ("messages", {}),
        ("messages", {"thinking": {"type": "adaptive"}}),
        ("completions", {}),
    ],
)
def test_what_a_request_says_of_thinking_holds(engine, api, more):
    read, body = APIS[api]
    ask = read({"model": "demo", **body, **more})
    assert len({opened(engine, ask, default).ids for default in (None, True, False)}) == 1


@pytest.mark.parametrize(
    ("api", "on"),
    [
        ("chat", {"reasoning_effort": "high"}),
        ("responses", {"reasoning": {"effort": "high"}}),
    ],
)
def test_where_it_says_nothing_the_server_decides(engine, api, on):
    read, body = APIS[api]
    unsaid, thinks = ({"model": "demo", **body, **more} for more in ({}, on))
    as_it_is, with_, without = (
        opened(engine, read(unsaid), default) for default in (None, True, False)
    )
    assert with_.thinking and with_.ids == opened(engine, read(thinks)).ids
    assert not without.thinking and without.ids == as_it_is.ids


@pytest.fixture(scope="module")
def naming(tmp_path_factory):
    """An engine whose chat template shows the names of users."""
    shown = "{% if m.role == 'user' and m.name %}{{ m.name }}: {% endif %}{{ m.content }}"
    template = PLAIN.replace("{{ m.content }}", shown)
    store = write_speaking_store(tmp_path_factory.mktemp("naming") / "store", template)
    with Engine.open(store) as engine:
        yield engine


def test_a_name_is_for_the_template(naming, foreign):
    """Which shows it, or does not: programs send names whatever the model."""

    def asked(*messages):
        return openai_chat.read({"model": "naming", "messages": list(messages)})

    ada = {**HI[0], "name": "Ada"}
    assert opened(naming, asked(ada)).ids != opened(naming, asked(*HI)).ids
    assert opened(foreign, asked(ada)).ids == opened(foreign, asked(*HI)).ids


def test_a_result_may_have_its_name_whatever_the_template_shows(foreign):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    talk = [*HI, {"role": "assistant", "tool_calls": [call]}]
    talk.append({"role": "tool", "tool_call_id": "c1", "content": "5", "name": "f"})
    assert opened(foreign, openai_chat.read({"model": "foreign", "messages": talk})).ids
