"""Chat templates against transformers' ``apply_chat_template``, text and ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flashmoe.text import ChatTemplate, Tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

ROOT = Path(__file__).parents[2]
AUSTEN = ROOT / "models" / "austen-moe"
QWEN = (ROOT / "tests" / "golden" / "qwen3.5.jinja").read_text()

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Wetter für “Zürich” & <Genève>",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Zürich", "東京"]},
                "days": {"type": "integer", "default": None, "minimum": 0.5},
            },
            "required": ["city"],
        },
    },
}
CALL: dict[str, Any] = {
    "type": "function",
    "id": "call_1",
    "function": {
        "name": "get_weather",
        "arguments": {"city": "Zürich", "days": 3, "nested": {"a": [1, None, True]}, "s": "a\nb"},
    },
}


EVERY: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "every-type",
        "arguments": {
            "none": None,
            "yes": True,
            "float": 1e-7,
            "big": 2**70,
            "empty": {},
            "list": [],
            "deep": {"ключ": [{"a": ["é", "\u2028", '"', "\\"]}]},
            "text": "</div> 'x' \t {{ y }}",
            "": "no name",
        },
    },
}
"""A call with a value of every type."""

NESTED: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "",
        "strict": True,
        "parameters": {
            "type": "object",
            "$defs": {"leg": {"type": "object", "properties": {"to": {"type": "string"}}}},
            "properties": {
                "legs": {"type": "array", "items": {"$ref": "#/$defs/leg"}, "minItems": 1},
                "class": {"anyOf": [{"const": 1}, {"type": "null"}], "description": "a 'b' \"c\""},
            },
            "additionalProperties": False,
        },
    },
}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def reply(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


SYSTEM = {"role": "system", "content": "  Be brief.\n\nBe kind. "}
TOOL = {"role": "tool", "content": '{"sky": "clear", "°C": 21}'}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [user("What is the capital of France?")],
    "system": [SYSTEM, user("hello")],
    "spaces and lines": [SYSTEM, user("  a\n\n\tb  \r\n"), reply("\n c \n"), user("d\n")],
    "unicode": [
        user("naïve café — 日本語 🙂👩‍👩‍👧 \u0301 \u200b ﷽"),
        reply("Ελληνικά"),
        user("ok"),
    ],
    "angles without markup": [
        user("if a < b and c > d: x<y>z  <b>html</b> [x] {y} {{z}} {% if %}")
    ],
    "many turns": [user("1"), reply("2"), user("3"), reply("4"), user("5")],
    "reasoning field": [user("1"), reply("2", reasoning_content="so\nthen"), user("3")],
    "older reasoning field": [
        user("1"),
        reply("2", thinking="hm"),
        user("3"),
        reply("4", reasoning="x"),
    ],
    "reasoning in content": [user("1"), reply("<think>\nso\n</think>\n\n2"), user("3")],
    "reasoning in the last reply": [user("1"), reply("<think>\nso\n\n</think>\n\n2")],
    "reasoning without its opening": [user("1"), reply("so it is\n</think>\n\n2")],
    "call": [user("weather?"), reply("I look.", tool_calls=[CALL]), TOOL],
    "call without content": [user("weather?"), reply(None, tool_calls=[CALL, CALL]), TOOL, TOOL],
    "call answered": [
        SYSTEM,
        user("weather?"),
        reply("", tool_calls=[CALL], reasoning_content="I need the tool."),
        TOOL,
        reply("Clear."),
        user("thanks"),
    ],
    "parts": [user([{"type": "text", "text": "a"}, {"type": "text", "text": " b"}])],
    "image": [user([{"type": "image"}, {"type": "text", "text": "what is it?"}])],
    "steps with tools": [
        SYSTEM,
        user("both?"),
        reply("First one.", tool_calls=[CALL], reasoning_content="a\n\nb "),
        TOOL,
        reply(None, tool_calls=[EVERY, CALL], reasoning_content="\nand c"),
        TOOL,
        {"role": "tool", "content": "<b>&amp; {{ x }}</b>\n"},
    ],
    "steps, then a question": [
        user("both?"),
        reply("", tool_calls=[CALL], reasoning_content="dropped"),
        TOOL,
        reply("", tool_calls=[EVERY], reasoning_content="dropped too"),
        {"role": "tool", "content": ""},
        reply(" Done. ", reasoning_content="and this"),
        user("and now?"),
        reply("ok", reasoning_content="kept"),
    ],
    "empty": [user(""), reply(""), user("  ")],
    "reply alone at the end": [user("1"), reply("2\n", reasoning_content="")],
    "result in parts": [
        user("x"),
        reply("", tool_calls=[CALL]),
        {"role": "tool", "content": [{"type": "text", "text": "a\n"}, {"text": "b"}]},
    ],
    "system in parts": [
        {"role": "system", "content": [{"type": "text", "text": " s "}]},
        user("x"),
    ],
    "empty system": [{"role": "system", "content": ""}, user("x")],
    "video": [user([{"type": "video"}, {"type": "text", "text": "?"}, {"type": "image"}])],
    "null fields": [user("x"), reply("y", tool_calls=None, name=None), user("z")],
}


@pytest.fixture(scope="module")
def oracle() -> Any:
    return transformers.AutoTokenizer.from_pretrained(AUSTEN)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(AUSTEN)


@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("tools", [None, [WEATHER], [WEATHER, NESTED]], ids=["", "tool", "tools"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_qwen_template_equals_transformers(
    name: str, tools: Any, thinking: bool | None, oracle: Any, tokenizer: Tokenizer
) -> None:
    template = ChatTemplate(QWEN, markup=tokenizer.markup)
    options = {} if thinking is None else {"enable_thinking": thinking}
    for prompt in (True, False):
        expected = oracle.apply_chat_template(
            CONVERSATIONS[name],
            tools=tools,
            chat_template=QWEN,
            tokenize=False,
            add_generation_prompt=prompt,
            **options,
        )
        segments = template.render(
            CONVERSATIONS[name],
            tools=tools,
            add_generation_prompt=prompt,
            enable_thinking=thinking,
        )
        assert "".join(segment.text for segment in segments) == expected
        ids = oracle(expected, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode_segments(segments) == ids


FEATURES = {
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
    "{{ m.content }}{% endfor %}",
    "generation tag": "{% for m in messages %}{% generation %}\n  {% set x = m.content %}"
    "{{ x }}\n{% endgeneration %}{{ x is defined }}{% endfor %}",
    "json": "{{ messages | tojson }}|{{ tools | tojson(indent=2) }}|"
    "{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}|"
    "{{ messages[0] | tojson(true) }}",
    "trimmed blocks": "  {% if true %}\n  a\n  {% endif %}\nb\n\n  {# c #}\n d",
    "namespace": "{% set n = namespace(i=0, s='') %}{% for m in messages %}{% set n.i = n.i + 1 %}"
    "{% set n.s = n.s ~ m.role %}{% endfor %}{{ n.i }}{{ n.s }}",
    "named tokens": "{{ bos_token }}x{{ eos_token }}{{ undefined_thing }}",
    "macro": "{% macro f(m, n=2) %}<{{ m.content }}>{{ caller is defined }}{% endmacro %}"
    "{% for m in messages[::-1] %}{{ f(m) }}{% endfor %}",
    "dates": "{{ strftime_now('%Y') }}",
    "dictionary": "{% set d = dict(a=1, **messages[0]) %}{% for k, v in d | items %}{{ k }}={{ v }}"
    "{% endfor %}{{ messages | map(attribute='role') | join(', ') }}",
    "absent arguments": "{{ tools is none }}{{ documents is none }}"
    "{{ enable_thinking is defined }}",
}


@pytest.mark.parametrize("name", FEATURES)
def test_jinja_features_equal_transformers(name: str, oracle: Any, tokenizer: Tokenizer) -> None:
    messages = [SYSTEM, user("grüße  \n"), reply("ok")]
    source = FEATURES[name]
    expected = oracle.apply_chat_template(
        messages, chat_template=source, tokenize=False, bos_token="<|endoftext|>"
    )
    template = ChatTemplate(
        source, bos_token="<|endoftext|>", eos_token=tokenizer.eos_token, markup=tokenizer.markup
    )
    assert template.render_text(messages, add_generation_prompt=False) == expected


def test_quoted_markup_gives_the_ids_of_transformers_own_guard(
    oracle: Any, tokenizer: Tokenizer
) -> None:
    """transformers' ``sanitize_control_tokens`` agrees on which ids are structure."""
    messages = [user("say <|im_end|> and <think> aloud"), reply("<|im_start|>?"), user("yes")]
    theirs = oracle.apply_chat_template(
        messages,
        chat_template=QWEN,
        add_generation_prompt=True,
        sanitize_control_tokens=True,
        return_dict=False,
    )
    template = ChatTemplate(QWEN, markup=tokenizer.markup)
    ours = tokenizer.encode_segments(template.render(messages))
    added = {tokenizer.id_of(token) for token in tokenizer.markup}
    assert [id for id in ours if id in added] == [id for id in theirs if id in added]
    assert tokenizer.decode(ours) == oracle.decode(theirs)
