"""OpenAI's ``/v1/completions``: a text continued as it stands.

Owns the API's form, both ways; see ``ask`` for what a translation is. ``echo`` with ``logprobs``
is how evaluations score a text of their own: the prompt's tokens come back with their
probabilities, and with ``max_tokens`` 0 nothing is generated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flashmoe.apps.serve.ask import (
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
from flashmoe.apps.serve.fields import Either, Flag, Items, Only, Record, Text, Whole
from flashmoe.apps.serve.openai_chat import usage_of
from flashmoe.apps.serve.openai_errors import refused
from flashmoe.apps.serve.openai_foreign import COMPLETING
from flashmoe.apps.serve.openai_stream import STREAMED, check_stream, wants_usage
from flashmoe.apps.serve.sampling_fields import DRAWN, EXTENSIONS, STOP, drawn
from flashmoe.text.pieces import Content
from flashmoe.turn import Plain

DEFAULT_MAX_TOKENS = 16
"""The API's own; a text without an end would otherwise be continued to the context's."""

_ONE = "one continuation is made of a prompt: send the request again for another"
_IDS = Items(Whole(0), least=1)
_PROMPT = Either(
    (Text(least=1), Items(Either((Text(least=1), _IDS, Whole(0)), "text or token ids"), least=1)),
    "a string, or a list of token ids",
)
PARAMETERS = Record(
    {
        **COMPLETING,
        "model": Text(),
        "prompt": _PROMPT,
        "max_tokens": Whole(0),
        **STREAMED,
        "stop": STOP,
        "logprobs": Whole(0, 20),
        "echo": Flag(),
        "n": Only(1, _ONE),
        "suffix": Only("", "text is continued, not filled in: leave it out"),
        "logit_bias": Only({}, "logits are not changed one by one here: leave it out"),
        "user": Text(),
        **DRAWN,
        **EXTENSIONS,
    },
    required=("model", "prompt"),
    notes={
        "prompt": "Text, or token ids; a list of one of them is taken as well.",
        "max_tokens": f"{DEFAULT_MAX_TOKENS} unless given. 0 only together with echo.",
        "echo": "The prompt comes first; with logprobs, its tokens do too. Not in a stream.",
        "user": "Has no effect.",
    },
)


def read(body: Mapping[str, Any]) -> Ask:
    """What a request asks for. Raises BadRequest."""
    given = PARAMETERS.read(body)
    check_stream(given)
    echo = given.get("echo", False)
    if echo and given.get("stream", False):
        raise BadRequest("echo is not there in a stream: ask for one of them", "echo")
    bound = given.get("max_tokens", DEFAULT_MAX_TOKENS)
    if bound == 0 and not echo:
        raise BadRequest("max_tokens is 0, which needs echo: ask for a token", "max_tokens")
    sampling = {**drawn(given), **({"max_tokens": bound} if bound else {})}
    if "logprobs" in given:
        sampling["logprobs"] = given["logprobs"]
    prompt, place = _prompt(given["prompt"])
    return Ask(
        Plain(prompt),
        given,
        Places(place),
        sampling,
        include_usage=wants_usage(given),
        echo=echo,
        generates=bound > 0,
    )


def _prompt(prompt: str | list[Any]) -> tuple[str | tuple[int, ...], str]:
    """The one prompt, and where it stands."""
    if isinstance(prompt, str):
        return prompt, "prompt"
    if all(isinstance(item, int) for item in prompt):
        return tuple(prompt), "prompt"
    if len(prompt) > 1:
        raise BadRequest(
            f"prompt has {len(prompt)} entries that are prompts: send a request for each", "prompt"
        )
    (only,) = prompt
    return only if isinstance(only, str) else tuple(only), "prompt[0]"


def whole(ask: Ask, head: Head, outcome: Outcome) -> dict[str, Any]:
    """The reply as one object."""
    text, tokens = outcome.content, outcome.tokens
    if outcome.echo:
        text, tokens = outcome.echo.text + text, (*outcome.echo.tokens, *tokens)
    logprobs = _logprobs(tokens, 0) if "logprobs" in ask.sampling else None
    reply = _reply(head, [_choice(text, logprobs, _reason(outcome))])
    return {**reply, "usage": usage_of(outcome.usage)}


class CompletionEvents:
    """The reply as events: chunks in the form of the whole, and a word at the end."""

    def __init__(self, ask: Ask, head: Head) -> None:
        self._ask = ask
        self._head = head
        self._length = 0  # characters so far, for the tokens' places

    def begin(self, prompt_tokens: int, cached_tokens: int) -> list[Event]:
        """Nothing: the first chunk has text."""
        return []

    def push(self, spoken: Spoken) -> list[Event]:
        """A chunk for what has come."""
        text = "".join(piece.text for piece in spoken.pieces if isinstance(piece, Content))
        logprobs = None
        if spoken.tokens:
            logprobs = _logprobs(spoken.tokens, self._length)
            self._length += sum(len(token.text) for token in spoken.tokens)
        if not text and not logprobs:
            return []
        return [self._chunk([_choice(text, logprobs, None)])]

    def finish(self, outcome: Outcome) -> list[Event]:
        """The last chunks: why it ended, and what it cost where that is wanted."""
        events = [self._chunk([_choice("", None, _reason(outcome))])]
        if self._ask.include_usage:
            reply = {**_reply(self._head, []), "usage": usage_of(outcome.usage)}
            events.append(Event(reply))
        return [*events, Event("[DONE]")]

    def fail(self, refusal: Refusal) -> list[Event]:
        """What went wrong."""
        return [Event(refused(refusal)), Event("[DONE]")]

    def _chunk(self, choices: list[dict[str, Any]]) -> Event:
        usage = {"usage": None} if self._ask.include_usage else {}
        return Event({**_reply(self._head, choices), **usage})


def _reason(outcome: Outcome) -> str:
    return "length" if outcome.finish_reason == "length" else "stop"


def _reply(head: Head, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"cmpl-{head.id}",
        "object": "text_completion",
        "created": head.created,
        "model": head.model,
        "choices": choices,
    }


def _choice(text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(tokens: Sequence[Token], begin: int) -> dict[str, Any]:
    """Tokens in columns; ``begin`` is the place of the first in the reply's text."""
    places = []
    for token in tokens:
        places.append(begin)
        begin += len(token.text)
    return {
        "tokens": [_spelled(token) for token in tokens],
        "token_logprobs": [None if math.isnan(one.logprob) else one.logprob for one in tokens],
        "top_logprobs": [None if math.isnan(one.logprob) else _top(one) for one in tokens],
        "text_offset": places,
    }


def _top(token: Token) -> dict[str, float]:
    """The alternatives and, as the API has it, the token itself among them."""
    return {_spelled(other): other.logprob for other in (token, *token.top)}


def _spelled(token: Token) -> str:
    """The token's text; in the API's way where its bytes are no whole characters."""
    try:
        return token.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)


ENDPOINT = Endpoint(
    path="/v1/completions",
    schema=PARAMETERS.schema(),
    read=read,
    refused=refused,
    whole=whole,
    events=CompletionEvents,
)
