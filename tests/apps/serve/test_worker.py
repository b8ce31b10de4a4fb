"""The worker's end: nothing that was taken from the queue escapes it."""

from unittest.mock import Mock

from flashmoe.apps.serve.ask import Head
from flashmoe.apps.serve.channel import Channel
from flashmoe.apps.serve.job import Job
from flashmoe.apps.serve.queue import Fair
from flashmoe.apps.serve.refusals import stopping
from flashmoe.apps.serve.worker import Worker


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
    job = Job(Mock(), Mock(), Mock(spec=Head), channel)
    queue.put("", job)
    worker.start()
    assert worker.join(10)
    assert job.cancelled is not None and job.cancelled.code == stopping().code
    assert channel.take() == [job.cancelled]
    engine.session.assert_not_called()
