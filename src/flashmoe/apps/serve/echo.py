"""A prompt that comes back with its reply, its tokens' probabilities where they are wanted.

Owns what is told of a prompt; the probabilities are ``scoring``'s.
"""

from __future__ import annotations

import math

from flashmoe.apps.serve.ask import Echo
from flashmoe.apps.serve.job import Job
from flashmoe.apps.serve.tokens import TokenLog
from flashmoe.engine import Engine
from flashmoe.progress import OnProgress
from flashmoe.scoring import prompt_logprobs
from flashmoe.session import Session
from flashmoe.turn import Plain


def echoed(
    engine: Engine, session: Session, job: Job, log: TokenLog, on_progress: OnProgress
) -> Echo:
    """The job's prompt. Where probabilities are wanted all of it passes through the session anew,
    and a reply goes on from there.

    Raises:
        InputError, ReadError, CancelledError: as for ``scoring.prompt_logprobs``.
    """
    ids, turn, top = job.opening.ids, job.opening.turn, job.sampling.logprobs
    given = turn.text if isinstance(turn, Plain) else ids
    text = given if isinstance(given, str) else engine.tokenizer.decode(ids)
    if top is None:
        return Echo(text)
    session.rewind(0)
    choices = prompt_logprobs(engine, session, ids, top, on_progress=on_progress)
    tokens = []
    for choice in choices:
        logprob = math.nan if choice.logprob is None else choice.logprob
        tokens.append(log.token(choice.id, logprob, choice.top))
    return Echo(text, tuple(tokens))
