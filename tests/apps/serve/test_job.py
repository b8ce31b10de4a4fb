"""A job's end, wherever it is when it is cancelled."""

from unittest.mock import Mock

import pytest

from flashmoe.apps.serve.ask import BadRequest, Head, Refusal
from flashmoe.apps.serve.channel import Channel
from flashmoe.apps.serve.job import Job
from flashmoe.apps.serve.room import Room, Share
from flashmoe.errors import CancelledError
from flashmoe.progress import Progress

FIRST, SECOND = BadRequest("first"), BadRequest("second")


def job(room: Room | None = None) -> Job:
    channel = Channel(lambda: None, streams=True)
    return Job(Mock(), Mock(), Mock(spec=Head), channel, Share(room or Room(100)), arrived=1.0)


def test_the_first_reason_counts():
    one = job()
    one.check()
    one.cancel(FIRST)
    one.cancel(SECOND)
    assert one.cancelled is FIRST
    with pytest.raises(CancelledError, match="first"):
        one.check()


def test_a_cancel_reaches_the_session_that_runs_and_no_other():
    one, session, later = job(), Mock(), Mock()
    with one.running(session):
        one.cancel(FIRST)
    session.cancel.assert_called_once()
    one.cancel(SECOND)
    session.cancel.assert_called_once()
    with pytest.raises(ZeroDivisionError), job().running(later):
        _ = 1 // 0
    later.cancel.assert_not_called()


def test_a_job_that_is_cancelled_before_it_runs_stops_at_its_first_progress():
    one, progress = job(), Progress(1, 10, 0, 0.1)
    one.told(progress)
    assert one.channel.progress is progress
    one.cancel(FIRST)
    with pytest.raises(CancelledError):
        one.told(Progress(2, 10, 0, 0.2))
    assert one.channel.progress is progress


def test_a_reply_that_there_is_no_room_for_is_refused():
    room = Room(100)
    one, other = job(room), job(room)
    one.hold(90)
    with pytest.raises(Refusal) as caught:
        other.hold(20)
    assert (caught.value.status, caught.value.code) == (503, "server_busy")
    assert caught.value.retry_after
    one.share.close()
    other.hold(20)
