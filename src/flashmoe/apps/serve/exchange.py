"""One request to an API, from its head to the last byte of its reply.

Owns the order, what a request has of the rooms that all share, and the comments that keep a stream
alive. Knows no API's form (``ask.Endpoint`` has that), no model (``service``) and no socket: who
asked is ``caller``'s, what goes out ``outlet``'s.

Invariants: a stream that has begun shows something at the latest one second in, and never stays
silent for five; the time of a request runs from its head on; whoever goes away, or leaves what was
sent unread for too long, loses its place at once, and its work within a layer; a reply ends with
the API's own end or the API's own error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from flashmoe.apps.serve import sse
from flashmoe.apps.serve.ask import (
    BadRequest,
    Endpoint,
    Event,
    Events,
    Head,
    Outcome,
    Refusal,
    Spoken,
)
from flashmoe.apps.serve.caller import Caller
from flashmoe.apps.serve.channel import Began, Channel, Item
from flashmoe.apps.serve.job import Job
from flashmoe.apps.serve.limits import Gone, Receive
from flashmoe.apps.serve.outlet import Scope, Send
from flashmoe.apps.serve.refusals import refusal_of, too_late
from flashmoe.apps.serve.room import Share
from flashmoe.apps.serve.service import RETRY_S, Prepared, Service
from flashmoe.progress import Progress

FIRST_QUIET_S, QUIET_S = 0.9, 2.0
"""After so long without an event there is a comment: the first, and further ones."""

LOOK_S = 0.5
"""How often a place in the queue is looked at."""

_JSON = (b"content-type", b"application/json")
_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy should pass on what comes
]


async def answer(
    send: Send, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> None:
    """Send a whole response with a JSON body."""
    data = sse.dumped(body).encode()
    lines = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    head = [_JSON, (b"content-length", str(len(data)).encode()), *lines]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": data})


class Posted:
    """An ASGI application that answers one endpoint."""

    def __init__(self, service: Service, endpoint: Endpoint) -> None:
        self._service = service
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Refusal where nothing has been sent yet, Gone where nobody is there."""
        arrived, caller = time.monotonic(), Caller(receive)
        with ExitStack() as until_over:
            until_over.callback(caller.close)
            seconds = self._service.limits.request_s
            try:
                async with asyncio.timeout(seconds):
                    prepared = await self._prepared(scope, caller)
            except TimeoutError:
                raise too_late(seconds) from None
            if self._endpoint.counted is not None:
                await answer(send, 200, self._endpoint.counted(len(prepared.opening.ids)))
                return
            turn = until_over.enter_context(Share(self._service.turns))
            if not turn.grow(prepared.size_bytes):
                raise Refusal(
                    429,
                    "the requests that wait take all the memory that is set aside for them: "
                    "try again later",
                    code="queue_full",
                    retry_after=RETRY_S,
                )
            share = Share(self._service.replies, self._service.sizes.reply_bytes)
            until_over.enter_context(share)
            job = self._job(prepared, scope, caller, share, arrived)
            await _Exchange(self._service, self._endpoint, prepared, job, caller, send).run()

    async def _prepared(self, scope: Scope, caller: Caller) -> Prepared:
        headers = dict(scope["headers"])
        _check_type(headers)
        _check_version(headers, self._endpoint)
        length = headers.get(b"content-length", b"")
        announced = int(length) if length.isdigit() else None
        service = self._service
        with Share(service.bodies) as share:
            body = await caller.body(announced, service.limits, share)
            work = partial(service.prepare, self._endpoint, body)
            return await caller.result(service.preparing, work)

    def _job(
        self, prepared: Prepared, scope: Scope, caller: Caller, share: Share, arrived: float
    ) -> Job:
        ask, served = prepared.ask, self._service.served
        name = ask.model if served.any_name else served.name
        return Job(
            prepared.opening,
            prepared.sampling,
            Head(scope["state"]["id"], int(time.time()), name),
            Channel(caller.wake, streams=ask.stream),
            share,
            source=str((scope.get("client") or ("",))[0]),
            arrived=arrived,
            echo=ask.echo,
            generates=ask.generates,
        )


def _check_type(headers: Mapping[bytes, bytes]) -> None:
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        shown = kind.decode("latin-1")[:100] or "not there"
        raise Refusal(
            415,
            f"the content-type is {shown}: send JSON as application/json",
            code="unsupported_media_type",
        )
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise Refusal(
            415, "the body is compressed: send it as it is", code="unsupported_media_type"
        )


def _check_version(headers: Mapping[bytes, bytes], endpoint: Endpoint) -> None:
    if endpoint.versions is None:
        return
    name, spoken = endpoint.versions
    given = headers.get(name.encode())
    if given is not None and given.decode("latin-1") not in spoken:
        shown = given.decode("latin-1")[:80]
        raise BadRequest(f"{name} is {shown}; it must be {' or '.join(spoken)}", name)


class _Exchange:
    """A request that has been checked, until its reply is out."""

    def __init__(
        self,
        service: Service,
        endpoint: Endpoint,
        prepared: Prepared,
        job: Job,
        caller: Caller,
        send: Send,
    ) -> None:
        self._service = service
        self._endpoint = endpoint
        self._ask = prepared.ask
        self._job = job
        self._caller = caller
        self._send = send

    async def run(self) -> None:
        """Reply.

        Raises:
            Refusal: nothing was sent.
            Gone: the client went away.
        """
        service, job = self._service, self._job
        limit = service.limits.request_s
        left = max(job.arrived + limit - time.monotonic(), 0)
        service.enter(job)
        timer = asyncio.get_running_loop().call_later(left, service.withdraw, job, too_late(limit))
        try:
            await (self._stream() if self._ask.stream else self._whole())
        finally:
            timer.cancel()
            service.leave(job)

    async def _items(self, patience: float | None) -> list[Item]:
        """What has come; after so many seconds, perhaps nothing."""
        await self._caller.wait(patience)
        return self._job.channel.take()

    async def _whole(self) -> None:
        assert self._endpoint.whole is not None
        while True:
            for item in await self._items(None):
                if isinstance(item, Refusal):
                    raise item
                if isinstance(item, Outcome):
                    body = self._endpoint.whole(self._ask, self._job.head, item)
                    await answer(self._send, 200, body)
                    return

    async def _stream(self) -> None:
        assert self._endpoint.events is not None
        events = self._endpoint.events(self._ask, self._job.head)
        await self._send({"type": "http.response.start", "status": 200, "headers": _STREAM})
        try:
            await self._told(events)
        except (Gone, asyncio.CancelledError):
            raise
        except Exception as error:  # the head is out, so that the error is an event
            await self._write(events.fail(refusal_of(error)))
        await self._send({"type": "http.response.body", "body": b""})

    async def _told(self, events: Events) -> None:
        """Write the reply until its end, and comments in between."""
        began, place, patience = False, None, FIRST_QUIET_S
        quiet_since = time.monotonic()
        while True:
            waits = place is not None
            left = max(quiet_since + patience - time.monotonic(), 0)
            items = await self._items(min(left, LOOK_S) if waits or not began else left)
            for item in items:
                began = began or isinstance(item, Began)
                await self._write(_events(events, item))
                if isinstance(item, Outcome | Refusal):
                    return
            before, place = place, self._service.queue.place(self._job)
            if items:
                quiet_since, patience = time.monotonic(), QUIET_S
            elif place != before or time.monotonic() >= quiet_since + patience:
                await self._comment(place, began)
                quiet_since, patience = time.monotonic(), QUIET_S

    async def _comment(self, place: int | None, began: bool) -> None:
        progress = self._job.channel.progress
        if place is not None:
            text = f"queue {place + self._service.worker.is_busy}"
        elif progress is not None:
            text = told(progress)
        else:
            text = "call" if self._job.channel.withholding else "working"
        ping = self._endpoint.ping if began else None
        await self._write([ping] if ping else [], sse.comment(text))

    async def _write(self, events: Iterable[Event], before: bytes = b"") -> None:
        data = before + b"".join(map(sse.encoded, events))
        if not data:
            return
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._caller.check()


def _events(events: Events, item: Item) -> list[Event]:
    if isinstance(item, Began):
        return events.begin(item.prompt_tokens, item.cached_tokens)
    if isinstance(item, Spoken):
        return events.push(item)
    return events.finish(item) if isinstance(item, Outcome) else events.fail(item)


def told(progress: Progress) -> str:
    """How far a prompt is: ``prompt 1234/16000 tokens, 61.2 tok/s, 240 s left``."""
    text = f"prompt {int(progress.done_tokens)}/{progress.total_tokens} tokens"
    left = progress.seconds_left
    if left is None:
        return text
    return f"{text}, {progress.tokens_per_second:.1f} tok/s, {left:.0f} s left"
