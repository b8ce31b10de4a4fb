"""The thread that has the engine: takes jobs from the queue and replies to them, one by one.

Owns the one session, which goes from request to request: what the next prompt has in common with
it does not pass again (``turn.Reply``). Everything else that touches the engine from other threads
only reads.

Invariant: every job that is taken ends with an Outcome or a Refusal in its channel.
"""

from __future__ import annotations

import gc
import threading
from dataclasses import replace

from flashmoe.apps.serve.ask import Echo, Outcome, Refusal, Spoken, Token, joined
from flashmoe.apps.serve.channel import APART, Began
from flashmoe.apps.serve.echo import echoed
from flashmoe.apps.serve.job import Job
from flashmoe.apps.serve.metrics import Metrics
from flashmoe.apps.serve.queue import Fair
from flashmoe.apps.serve.refusals import refusal_of, stopping
from flashmoe.apps.serve.room import TOKEN_BYTES, spoken_bytes
from flashmoe.apps.serve.tokens import TokenLog
from flashmoe.engine import Engine
from flashmoe.errors import CancelledError, FlashMoeError
from flashmoe.progress import Progress
from flashmoe.session import Session
from flashmoe.text.pieces import Piece
from flashmoe.turn import Reply, Usage


class Worker:
    """Runs from :meth:`start` until :meth:`stop`."""

    def __init__(self, engine: Engine, queue: Fair[Job], metrics: Metrics) -> None:
        self._engine = engine
        self._queue = queue
        self._metrics = metrics
        self._session: Session | None = None
        self._running: Job | None = None
        self._cut = False
        self._thread = threading.Thread(target=self._run, name="flashmoe-worker", daemon=True)

    @property
    def is_busy(self) -> bool:
        """Whether a reply is under way."""
        return self._running is not None

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def stop(self) -> None:
        """Refuse what waits, and take nothing more; what is under way goes on."""
        for job in self._queue.close():
            job.cancel(stopping())
            job.channel.put(stopping())

    def cut_short(self) -> None:
        """End what is under way within a layer, and what has been taken but not begun."""
        self._cut = True  # before the look: a job in neither thread's sight would go on
        job = self._running
        if job is not None:
            job.cancel(stopping())

    def join(self, seconds: float) -> bool:
        """Wait for the thread; False where it has not ended in time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._queue.take()) is not None:
            self._running = job
            if self._cut:
                job.cancel(stopping())
            try:
                self._reply(job)
            finally:
                self._running = None

    def _reply(self, job: Job) -> None:
        try:
            job.check()
            if self._session is None:
                gc.collect()  # of one that was given up, for there may be room for one alone
                self._session = self._engine.session()
            outcome = self._outcome(job, self._session)
        except CancelledError:
            assert job.cancelled is not None
            self._metrics.cancelled()
            job.channel.put(job.cancelled)
        except BaseException as error:
            if not isinstance(error, FlashMoeError | Refusal):
                self._session = None  # whatever is wrong with it
            job.channel.put(refusal_of(error))
        else:
            job.channel.put(outcome)

    def _outcome(self, job: Job, session: Session) -> Outcome:
        telling = _Telling(job)
        with job.running(session):
            log = TokenLog(self._engine)
            echo = self._echo(job, session, log, telling) if job.echo else None
            if not job.generates:
                usage = Usage(len(job.opening.ids), 0, 0, 0)
                self._metrics.reply(usage)
                return Outcome((), "length", None, usage, echo=echo)
            reply = Reply(self._engine, session, job.opening, job.sampling, telling.progress)
            pieces: list[Piece] = []
            tokens: list[Token] = []
            try:
                for beat in reply:
                    job.check()
                    self._metrics.step(beat.step, first=job.arrived if not telling.spoke else None)
                    telling.spoke = True
                    made = log.push(beat.step, beat.pieces)
                    job.channel.withholding = reply.withholding
                    if beat.pieces:
                        job.hold(spoken_bytes(beat.pieces, made))
                        pieces += beat.pieces
                        if len(pieces) > APART:
                            pieces = list(joined(pieces))
                        tokens += made
                        job.channel.put(Spoken(beat.pieces, made))
            finally:
                reply.close()
                self._metrics.reply(reply.usage)
        assert reply.finish_reason is not None
        usage = reply.usage
        if echo and echo.tokens:
            usage = replace(usage, cached_tokens=0)  # all of it has passed for the echo
        return Outcome(
            joined(pieces), reply.finish_reason, reply.stop_sequence, usage, tuple(tokens), echo
        )

    def _echo(self, job: Job, session: Session, log: TokenLog, telling: _Telling) -> Echo:
        if job.sampling.logprobs is not None:
            job.hold(TOKEN_BYTES * len(job.opening.ids) * (1 + job.sampling.logprobs))
        return echoed(self._engine, session, job, log, telling.progress)


class _Telling:
    """Tells a channel that a reply has begun, once its prompt's size is known."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._began = False
        self.spoke = False

    def progress(self, progress: Progress) -> None:
        self._job.told(progress)
        if not self._began:
            self._began = True
            size = len(self._job.opening.ids)
            passing = progress.total_tokens - progress.cached_tokens
            self._job.channel.put(Began(size, max(size - passing, 0)))
        if progress.done_tokens >= progress.total_tokens:
            self._job.channel.progress = None
