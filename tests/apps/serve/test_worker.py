"""The worker: nothing that was taken from the queue escapes it, and nothing stops it."""

from __future__ import annotations

import time
from unittest.mock import Mock

import pytest

from flashmoe.apps.serve.ask import Head, Outcome, Refusal, Spoken
from flashmoe.apps.serve.channel import Began, Channel
from flashmoe.apps.serve.job import Job
from flashmoe.apps.serve.metrics import Metrics
from flashmoe.apps.serve.queue import Fair
from flashmoe.apps.serve.refusals import stopping
from flashmoe.apps.serve.room import Room, Share
from flashmoe.apps.serve.worker import Worker
from flashmoe.engine import Engine
from flashmoe.errors import ReadError
from flashmoe.text.pieces import Content
from flashmoe.turn import Opening, Plain
from tests.apps.serve.conftest import Brake, until


class Faulty:
    """An engine whose next session cannot be had, for these reasons in turn."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.faults: list[BaseException] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def session(self) -> object:
        if self.faults:
            raise self.faults.pop(0)
        return self._engine.session()


class Bench:
    """A worker on an engine, and what it is asked."""

    def __init__(self, engine: Engine) -> None:
        self.engine = Faulty(engine)
        self.queue: Fair[Job] = Fair(16)
        self.metrics = Metrics(engine, "demo", lambda: 0, lambda: 0, {})
        self.worker = Worker(self.engine, self.queue, self.metrics)  # type: ignore[arg-type]

    def job(self, *, room_bytes: int = 1 << 20, streams: bool = False, **sampling: object) -> Job:
        asked = {"temperature": 0, "max_tokens": 4, **sampling}
        opening = Opening.of(self.engine, Plain("Emma was"))  # type: ignore[arg-type]
        channel = Channel(lambda: None, streams=streams)
        return Job(
            opening,
            self.engine._engine.sampling(**asked),
            Head("0", 0, "demo"),
            channel,
            Share(Room(room_bytes)),
            arrived=time.monotonic(),
        )

    def ends(self, job: Job) -> Outcome | Refusal:
        items: list[object] = []
        until(lambda: bool(items.extend(job.channel.take()) or items))
        (end,) = items
        assert isinstance(end, Outcome | Refusal)
        return end

    def asked(self, job: Job) -> Outcome | Refusal:
        self.queue.put("", job)
        return self.ends(job)


@pytest.fixture
def bench(engine):
    bench = Bench(engine)
    bench.worker.start()
    yield bench
    bench.worker.stop()
    bench.worker.cut_short()
    assert bench.worker.join(20)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (ReadError("record 3 of layer-02 does not match its checksum"), "log says why"),
        (ZeroDivisionError("a bug"), "log says how"),
        (MemoryError(), "log says how"),
    ],
)
def test_an_engine_that_fails_once_fails_one_request(bench, fault, words, caplog):
    bench.engine.faults = [fault]
    bench.worker._session = None
    end = bench.asked(bench.job())
    assert isinstance(end, Refusal) and end.status == 500
    assert words in end.message and "layer-02" not in end.message
    assert "a reply has failed" in caplog.text
    good = bench.asked(bench.job())
    assert isinstance(good, Outcome) and good.usage.completion_tokens == 4


def test_a_session_in_which_something_unknown_went_wrong_is_not_used_again(bench, monkeypatch):
    assert isinstance(bench.asked(bench.job()), Outcome)
    broken = bench.worker._session
    monkeypatch.setattr(broken, "generate", Mock(side_effect=ZeroDivisionError))
    assert isinstance(bench.asked(bench.job()), Refusal)
    assert isinstance(bench.asked(bench.job()), Outcome)
    assert bench.worker._session is not broken


def test_a_cancelled_job_frees_the_worker_within_a_layer(bench, brake: Brake):
    brake.layer_s = 0.05
    try:
        long, short = bench.job(max_tokens=500), bench.job()
        bench.queue.put("a", long)
        until(lambda: bench.worker.is_busy and brake.layers > 0)
        bench.queue.put("b", short)
        left = brake.layers
        why = Refusal(499, "gone")
        long.cancel(why)
        assert bench.ends(long) is why and brake.layers - left <= 2
        brake.layer_s = 0.0
        assert isinstance(bench.ends(short), Outcome)
    finally:
        brake.layer_s = 0.0
    assert b"flashmoe_cancelled_total 1.0" in bench.metrics.text()


def test_a_reply_that_outgrows_its_room_ends_and_the_next_does_not(bench):
    end = bench.asked(bench.job(room_bytes=5000, logprobs=5, max_tokens=20))
    assert isinstance(end, Refusal) and (end.status, end.code) == (503, "server_busy")
    session = bench.worker._session
    assert session is not None, "nothing is wrong with it"
    assert isinstance(bench.asked(bench.job()), Outcome)
    assert bench.worker._session is session


def test_a_stream_tells_what_its_end_tells(bench):
    job = bench.job(streams=True, max_tokens=100)
    bench.queue.put("", job)
    items: list[object] = []

    def has_ended() -> bool:
        items.extend(job.channel.take())
        return bool(items) and isinstance(items[-1], Outcome)

    until(has_ended)
    began, *spoken, outcome = items
    assert began == Began(len(job.opening.ids), 0) and isinstance(outcome, Outcome)
    text = "".join(
        piece.text
        for item in spoken
        if isinstance(item, Spoken)
        for piece in item.pieces
        if isinstance(piece, Content)
    )
    assert text == outcome.content and len(outcome.pieces) == 1


def test_what_waits_is_refused_when_the_worker_stops(bench, brake: Brake):
    brake.layer_s = 0.05
    try:
        first, second = bench.job(), bench.job()
        bench.queue.put("", first)
        until(lambda: bench.worker.is_busy)
        bench.queue.put("", second)
        bench.worker.stop()
        end = bench.ends(second)
        assert isinstance(end, Refusal) and end.code == stopping().code and end.retry_after
        assert isinstance(bench.ends(first), Outcome)
    finally:
        brake.layer_s = 0.0
    assert bench.worker.join(10) and not bench.worker.is_busy


class Between(Fair[Job]):
    """Cuts short once a job has been taken, and before the worker has it in sight."""

    worker: Worker

    def take(self) -> Job | None:
        job = super().take()
        if job is not None:
            self.close()
            self.worker.cut_short()
        return job


def test_a_job_that_was_just_taken_is_cut_short_too() -> None:
    queue, engine = Between(2), Mock()
    queue.worker = worker = Worker(engine, queue, Mock())
    channel = Channel(lambda: None, streams=False)
    job = Job(Mock(), Mock(), Mock(spec=Head), channel, Mock(spec=Share))
    queue.put("", job)
    worker.start()
    assert worker.join(10)
    assert job.cancelled is not None and job.cancelled.code == stopping().code
    assert channel.take() == [job.cancelled]
    engine.session.assert_not_called()
