"""What all requests share: the engine, the queue before it, and what is served.

Owns the way in and out of the queue, and the rooms that requests share; what is asked and told is
``exchange``'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from flashmoe.apps.serve.ask import Ask, BadRequest, Endpoint, Refusal
from flashmoe.apps.serve.job import Job
from flashmoe.apps.serve.limits import Limits, parsed
from flashmoe.apps.serve.metrics import Metrics
from flashmoe.apps.serve.opening import opened
from flashmoe.apps.serve.queue import Fair, Full
from flashmoe.apps.serve.refusals import stopping
from flashmoe.apps.serve.room import GUIDE_BYTES, GUIDE_FACTOR, ID_BYTES, Room, Sizes
from flashmoe.apps.serve.worker import Worker
from flashmoe.engine import Engine
from flashmoe.options import Sampling
from flashmoe.turn import Opening, Turn

RETRY_S = 5
"""After so long a client that found no place may try again."""


@dataclass(frozen=True)
class Served:
    """The one model: its name, whether requests may name others (and get this one), when the
    store was made, in seconds since 1970, and whether it thinks where a request does not say; None
    leaves that to its template."""

    name: str
    any_name: bool = False
    created: int = 0
    thinking: bool | None = None


@dataclass(frozen=True)
class Prepared:
    """A request that has passed every check, and what it takes of memory until it is over."""

    ask: Ask
    opening: Opening
    sampling: Sampling
    size_bytes: int


class Service:
    """One engine, and those who wait for it."""

    def __init__(self, engine: Engine, served: Served, limits: Limits) -> None:
        self.engine = engine
        self.served = served
        self.limits = limits
        self.sizes = Sizes.of(limits, engine.plan.context_tokens)
        self.bodies = Room(self.sizes.bodies_bytes)
        self.turns = Room(self.sizes.turns_bytes)
        self.replies = Room(self.sizes.replies_bytes)
        # One: the processors are for the reply that is under way, and memory for one is planned.
        self.preparing = ThreadPoolExecutor(1, thread_name_prefix="flashmoe-prepare")
        self.queue: Fair[Job] = Fair(limits.waiting)
        self.metrics = Metrics(
            engine,
            served.name,
            self.queue.__len__,
            lambda: int(self.worker.is_busy),
            {"bodies": self.bodies, "turns": self.turns, "replies": self.replies},
        )
        self.worker = Worker(engine, self.queue, self.metrics)
        self.is_stopping = False
        self.open_replies = 0
        """Requests that wait, are replied to, or whose reply is on its way."""

    def start(self) -> None:
        """Begin to reply."""
        self.worker.start()

    def stop(self) -> None:
        """Take no more requests, and refuse those that wait; the one under way goes on."""
        self.is_stopping = True
        self.preparing.shutdown(wait=False, cancel_futures=True)
        self.worker.stop()

    def prepare(self, endpoint: Endpoint, body: bytes | bytearray) -> Prepared:
        """Check a request, down to its tokens. Runs in the one thread of :attr:`preparing`.

        Raises:
            Refusal, FlashMoeError: it cannot be honoured.
        """
        values, size = parsed(body, self.limits.depth, self.sizes.parsed_bytes)
        ask = endpoint.read(values)
        self.check_model(ask.model)
        sampling = self.engine.sampling(**ask.sampling)
        size += _guide_bytes(ask)
        if size > self.sizes.turns_bytes:
            raise Refusal(
                413,
                "the tools and schemas of the request take more memory than there is for it: "
                "send fewer, or smaller ones (--max-body allows more)",
                code="request_too_large",
            )
        opening = opened(self.engine, ask, self.served.thinking)
        size += ID_BYTES * len(opening.ids)
        return Prepared(ask, opening, self._bounded(ask, sampling, len(opening.ids)), size)

    def _bounded(self, ask: Ask, sampling: Sampling, prompt_tokens: int) -> Sampling:
        """The sampling, for as many tokens as a reply may hold with their probabilities; it ends
        there as it would at the context's end."""
        if sampling.logprobs is None:
            return sampling
        most = self.sizes.reply_tokens // (1 + sampling.logprobs)
        left = most - (prompt_tokens if ask.echo else 0)
        if left < ask.generates:
            raise BadRequest(
                f"the prompt's {prompt_tokens} tokens with their log-probabilities take more "
                f"memory than there is for a reply, which is enough for {most} with "
                f"{sampling.logprobs} alternatives each: send less, or ask for fewer alternatives",
                "echo",
                "invalid_value",
            )
        return replace(sampling, max_tokens=min(sampling.max_tokens or left, left) or 1)

    def check_model(self, name: str) -> None:
        """Raises Refusal (404) for a model that is not served."""
        if name != self.served.name and not self.served.any_name:
            raise Refusal(
                404,
                f"the model {name[:200]!r} does not exist; {self.served.name!r} does "
                "(--any-model serves it whatever is asked for)",
                param="model",
                code="model_not_found",
            )

    def enter(self, job: Job) -> None:
        """Have a job wait for its turn.

        Raises:
            Refusal: there is no place (429), or no time left (503).
        """
        if self.is_stopping:
            raise stopping()
        try:
            self.queue.put(job.source, job)
        except Full as error:
            if self.is_stopping:
                raise stopping() from None
            raise Refusal(
                429, f"{error}: try again later", code="queue_full", retry_after=RETRY_S
            ) from None
        self.open_replies += 1

    def leave(self, job: Job) -> None:
        """A job that had entered is over: its reply is out, or nobody wants it any more."""
        self.open_replies -= 1
        self.withdraw(job, Refusal(499, "the client has closed the connection"))

    def withdraw(self, job: Job, why: Refusal) -> None:
        """End a job, wherever it is."""
        job.cancel(why)
        if self.queue.remove(job):
            job.channel.put(why)

    def described(self) -> Mapping[str, Any]:
        """The model, as ``/v1/models`` tells of it: OpenAI's words and Anthropic's, since both
        have that path."""
        context = self.engine.plan.context_tokens
        made = datetime.fromtimestamp(self.served.created, UTC)
        return {
            "id": self.served.name,
            "object": "model",
            "created": self.served.created,
            "owned_by": "flashmoe",
            "context_length": context,
            "type": "model",
            "display_name": self.served.name,
            "created_at": made.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lifecycle": "active",
            "max_input_tokens": context,
            "max_tokens": context,
        }


def _guide_bytes(ask: Ask) -> int:
    """What binds the reply to its tools or its form, and waits with it."""
    turn = ask.turn
    if not isinstance(turn, Turn) or not (turn.tools or turn.form):
        return 0
    return GUIDE_BYTES + GUIDE_FACTOR * (len(json.dumps(turn.tools)) + len(repr(turn.form)))
