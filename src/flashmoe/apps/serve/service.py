"""What all requests share: the engine, the queue before it, and what is served.

Owns the way in and out of the queue; what is asked and told is ``exchange``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flashmoe.apps.serve.ask import Ask, Endpoint, Refusal
from flashmoe.apps.serve.job import Job
from flashmoe.apps.serve.limits import Limits, parsed
from flashmoe.apps.serve.metrics import Metrics
from flashmoe.apps.serve.opening import opened
from flashmoe.apps.serve.queue import Fair, Full
from flashmoe.apps.serve.refusals import stopping
from flashmoe.apps.serve.worker import Worker
from flashmoe.engine import Engine
from flashmoe.options import Sampling
from flashmoe.turn import Opening

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
    """A request that has passed every check."""

    ask: Ask
    opening: Opening
    sampling: Sampling


class Service:
    """One engine, and those who wait for it."""

    def __init__(self, engine: Engine, served: Served, limits: Limits) -> None:
        self.engine = engine
        self.served = served
        self.limits = limits
        self.queue: Fair[Job] = Fair(limits.waiting)
        self.metrics = Metrics(engine, self.queue.__len__, lambda: int(self.worker.is_busy))
        self.worker = Worker(engine, self.queue, self.metrics)
        self.is_stopping = False

    def start(self) -> None:
        """Begin to reply."""
        self.worker.start()

    def stop(self) -> None:
        """Take no more requests, and refuse those that wait; the one under way goes on."""
        self.is_stopping = True
        self.worker.stop()

    def prepare(self, endpoint: Endpoint, body: bytes) -> Prepared:
        """Check a request, down to its tokens. Runs in any thread.

        Raises:
            Refusal, FlashMoeError: it cannot be honoured.
        """
        ask = endpoint.read(parsed(body, self.limits.depth))
        self.check_model(ask.model)
        sampling = self.engine.sampling(**ask.sampling)
        return Prepared(ask, opened(self.engine, ask, self.served.thinking), sampling)

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
