"""OpenAI's ``/v1/chat/completions``: its parameters, and a reply in its shapes.

Owns what a reply looks like, whole and streamed. How messages become a conversation is
``openai_messages``'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashmoe.apps.serve.ask import (
    EFFORTS,
    Ask,
    BadRequest,
    Endpoint,
    Event,
    Head,
    Outcome,
    Places,
    Refusal,
    Spoken,
    Token,
)
from flashmoe.apps.serve.fields import (
    Flag,
    Free,
    Items,
    Only,
    Record,
    Refused,
    Tagged,
    Text,
    Whole,
)
from flashmoe.apps.serve.openai_errors import refused
from flashmoe.apps.serve.openai_foreign import CHATTING
from flashmoe.apps.serve.openai_messages import (
    MESSAGE,
    TOOL,
    TOOL_CHOICE,
    conversation,
    tool_choice,
    tools,
)
from flashmoe.apps.serve.openai_stream import STREAMED, check_stream, wants_usage
from flashmoe.apps.serve.sampling_fields import DRAWN, EXTENSIONS, STOP, drawn
from flashmoe.text.pieces import Call, Content, Reasoning
from flashmoe.turn import Form, JsonSchema, Regex, Turn, Usage

TOP_MOST = 20

_STORED = "stored with OpenAI, which changes no answer; nothing is stored here"
_ELSEWHERE = "it belongs to OpenAI's own servers: leave it out"
_ALONE = "one reply a request is what there is here: ask again for another"

REQUEST = Record(
    {
        **CHATTING,
        "model": Text(least=1),
        "messages": Items(MESSAGE, least=1),
        **STREAMED,
        "tools": Items(TOOL),
        "tool_choice": TOOL_CHOICE,
        "parallel_tool_calls": Flag(),
        "response_format": Tagged(
            "type",
            {
                "text": Record({}),
                "json_object": Record({}),
                "json_schema": Record(
                    {
                        "json_schema": Record(
                            {
                                "name": Text(),
                                "schema": Free(),
                                "strict": Flag(),
                                "description": Text(),
                            },
                            required=("schema",),
                            notes={
                                "name": "Has no effect.",
                                "description": "Has no effect: the schema alone binds the answer.",
                                "strict": "Answers are held to the schema in any case.",
                            },
                        )
                    },
                    required=("json_schema",),
                ),
            },
        ),
        "guided_regex": Text(least=1),
        "max_tokens": Whole(1),
        "max_completion_tokens": Whole(1),
        **DRAWN,
        **EXTENSIONS,
        "stop": STOP,
        "logprobs": Flag(),
        "top_logprobs": Whole(0, TOP_MOST),
        "n": Only(1, _ALONE),
        "reasoning_effort": Text(tuple(EFFORTS)),
        "chat_template_kwargs": Record({"enable_thinking": Flag()}),
        "user": Text(),
        "safety_identifier": Text(),
        "prompt_cache_key": Text(),
        "prompt_cache_retention": Text(("in_memory", "24h")),
        "prompt_cache_options": Refused(_ELSEWHERE),
        "moderation": Refused(_ELSEWHERE),
        "metadata": Free(),
        "store": Flag(),
        "service_tier": Text(("auto", "default")),
        "verbosity": Only("medium", "the model has no setting for it: say it in a message"),
        "modalities": Only(["text"], "text is all that comes from here"),
        "audio": Refused("text is all that comes from here"),
        "functions": Refused("give tools instead"),
        "function_call": Refused("give tool_choice instead"),
        "logit_bias": Only({}, "logits are not changed one by one here: leave it out"),
        "prediction": Refused("nothing is drafted here: leave it out"),
        "web_search_options": Refused("there is no search here: offer a tool that does it"),
    },
    required=("model", "messages"),
    notes={
        "guided_regex": "Not OpenAI's: the answer matches this regular expression.",
        "top_k": "Not OpenAI's: keep so many of the likeliest tokens; 0 or -1 keeps all.",
        "min_p": "Not OpenAI's: keep tokens at least this likely relative to the best.",
        "repetition_penalty": "Not OpenAI's: divide the logits of tokens seen before.",
        "chat_template_kwargs": "Not OpenAI's: enable_thinking switches reasoning.",
        "reasoning_effort": "none switches reasoning off; minimal, low and medium end it after "
        "256, 1024 and 4096 tokens.",
        "user": "Has no effect.",
        "safety_identifier": "Has no effect.",
        "prompt_cache_key": "Has no effect: prompts are found by their tokens.",
        "prompt_cache_retention": "Has no effect: what was used longest ago is dropped first.",
        "metadata": f"Has no effect: {_STORED}.",
        "store": f"Has no effect: {_STORED}.",
        "service_tier": "Has no effect.",
    },
)


def read(body: Mapping[str, Any]) -> Ask:
    """What a body asks for.

    Raises:
        BadRequest: naming the parameter at fault.
    """
    given = REQUEST.read(body)
    check_stream(given)
    offered = tools(given.get("tools", []))
    thinking, budget = _thinking(given)
    turn = Turn(
        messages=conversation(given["messages"]),
        tools=offered,
        tool_choice=tool_choice(given.get("tool_choice", "auto"), offered),
        parallel_calls=given.get("parallel_tool_calls", True),
        thinking=thinking,
        thinking_budget=budget,
        form=_form(given),
    )
    return Ask(turn, given, _places(given), _sampling(given), include_usage=wants_usage(given))


def _places(given: Mapping[str, Any]) -> Places:
    effort = "reasoning_effort" in given
    return Places(
        prompt="messages",
        schema="tools[{}].function.parameters",
        form="guided_regex" if "guided_regex" in given else "response_format.json_schema.schema",
        thinking="reasoning_effort" if effort else "chat_template_kwargs.enable_thinking",
    )


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    sampling = drawn(given)
    most = given.get("max_completion_tokens", given.get("max_tokens"))
    if given.get("max_tokens", most) != most:
        raise BadRequest(
            "max_tokens and max_completion_tokens differ: give one of them", "max_tokens"
        )
    if most is not None:
        sampling["max_tokens"] = most
    if given.get("logprobs"):
        sampling["logprobs"] = given.get("top_logprobs", 0)
    elif given.get("top_logprobs"):
        raise BadRequest("top_logprobs comes with logprobs: set it to true", "top_logprobs")
    return sampling


def _thinking(given: Mapping[str, Any]) -> tuple[bool | None, int | None]:
    switched = given.get("chat_template_kwargs", {}).get("enable_thinking")
    if "reasoning_effort" not in given:
        return switched, None
    thinking, budget = EFFORTS[given["reasoning_effort"]]
    if switched is not None and switched != thinking:
        raise BadRequest(
            "reasoning_effort and chat_template_kwargs.enable_thinking contradict each other: "
            "give one of them",
            "reasoning_effort",
        )
    return thinking, budget


def _form(given: Mapping[str, Any]) -> Form | None:
    wanted = given.get("response_format", {"type": "text"})
    form: Form | None = None
    if wanted["type"] == "json_object":
        form = JsonSchema({"type": "object"})
    elif wanted["type"] == "json_schema":
        form = JsonSchema(wanted["json_schema"]["schema"])
    if "guided_regex" in given:
        if form is not None:
            raise BadRequest(
                "guided_regex and response_format bind the same answer: give one of them",
                "guided_regex",
            )
        form = Regex(given["guided_regex"])
    return form


def usage_of(usage: Usage) -> dict[str, Any]:
    """The figures, as both of OpenAI's older APIs tell them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _entry(token: Token) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.data)}


def _logprobs(tokens: tuple[Token, ...]) -> dict[str, Any]:
    entries = [
        {**_entry(token), "top_logprobs": [_entry(other) for other in token.top]}
        for token in tokens
    ]
    return {"content": entries, "refusal": None}


def _call(call: Call, head: Head, index: int) -> dict[str, Any]:
    return {
        "id": f"call_{head.part(index)}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def whole(ask: Ask, head: Head, outcome: Outcome) -> dict[str, Any]:
    """The body of a reply that is not streamed."""
    calls = [_call(call, head, index) for index, call in enumerate(outcome.calls)]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls and not outcome.content else outcome.content,
        "refusal": None,
    }
    if outcome.reasoning:
        message["reasoning_content"] = outcome.reasoning
    if calls:
        message["tool_calls"] = calls
    choice = {
        "index": 0,
        "message": message,
        "logprobs": _logprobs(outcome.tokens) if "logprobs" in ask.sampling else None,
        "finish_reason": outcome.finish_reason,
    }
    return {
        "id": f"chatcmpl-{head.id}",
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": [choice],
        "usage": usage_of(outcome.usage),
    }


class ChatEvents:
    """A reply as chunks; ``[DONE]`` ends it."""

    def __init__(self, ask: Ask, head: Head) -> None:
        self._ask = ask
        self._head = head
        self._calls = 0

    def begin(self, prompt_tokens: int, cached_tokens: int) -> list[Event]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def push(self, spoken: Spoken) -> list[Event]:
        events, tokens = [], spoken.tokens
        for piece in spoken.pieces:
            if isinstance(piece, Reasoning):
                events.append(self._chunk({"reasoning_content": piece.text}))
            elif isinstance(piece, Content):
                events.append(self._chunk({"content": piece.text}, tokens))
                tokens = ()  # with the first of them
            else:
                call = {"index": self._calls, **_call(piece, self._head, self._calls)}
                self._calls += 1
                events.append(self._chunk({"tool_calls": [call]}))
        return events

    def finish(self, outcome: Outcome) -> list[Event]:
        events = [self._chunk({}, finish=outcome.finish_reason)]
        if self._ask.include_usage:
            events.append(Event({**self._frame([]), "usage": usage_of(outcome.usage)}))
        return [*events, Event("[DONE]")]

    def fail(self, refusal: Refusal) -> list[Event]:
        return [Event(refused(refusal)), Event("[DONE]")]

    def _chunk(
        self, delta: dict[str, Any], tokens: tuple[Token, ...] = (), finish: str | None = None
    ) -> Event:
        logprobs = _logprobs(tokens) if tokens else None
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return Event(self._frame([choice]))

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        frame = {
            "id": f"chatcmpl-{self._head.id}",
            "object": "chat.completion.chunk",
            "created": self._head.created,
            "model": self._head.model,
            "choices": choices,
        }
        return {**frame, "usage": None} if self._ask.include_usage else frame


ENDPOINT = Endpoint(
    path="/v1/chat/completions",
    schema=REQUEST.schema(),
    read=read,
    refused=refused,
    whole=whole,
    events=ChatEvents,
)
