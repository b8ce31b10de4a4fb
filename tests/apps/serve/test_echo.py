"""A prompt that comes back: its text, and what the model makes of each token."""

import math

import numpy as np
import pytest

from flashmoe import Engine
from flashmoe.apps.serve.ask import Echo, Head
from flashmoe.apps.serve.channel import Channel
from flashmoe.apps.serve.echo import echoed
from flashmoe.apps.serve.job import Job
from flashmoe.apps.serve.room import Room, Share
from flashmoe.apps.serve.tokens import TokenLog
from flashmoe.turn import Opening, Plain

TEXT = "Emma was sitting"


def echo_of(engine: Engine, text: str | tuple[int, ...], logprobs: int | None) -> Echo:
    opening = Opening.of(engine, Plain(text))
    sampling = engine.sampling(logprobs=logprobs)
    channel, share = Channel(lambda: None, streams=False), Share(Room(1 << 20))
    job = Job(opening, sampling, Head("a", 0, "demo"), channel, share)
    session = engine.session()
    told = echoed(engine, session, job, TokenLog(engine), lambda progress: None)
    assert session.ids == (opening.ids if logprobs is not None else ())
    return told


def test_without_probabilities_nothing_passes(engine: Engine) -> None:
    ids = tuple(engine.tokenizer.encode(TEXT))
    assert echo_of(engine, TEXT, None) == echo_of(engine, ids, None) == Echo(TEXT)


def test_probabilities_are_those_of_the_logits(engine: Engine) -> None:
    told = echo_of(engine, TEXT, 2)
    ids = engine.tokenizer.encode(TEXT)
    assert [token.id for token in told.tokens] == ids
    assert "".join(token.text for token in told.tokens) == told.text == TEXT
    first, *rest = told.tokens
    assert math.isnan(first.logprob)
    assert first.top == ()
    logits = engine.session().logits(ids)[:, : engine.tokenizer.vocab_size].astype(np.float64)
    wanted = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for row, token in zip(wanted, rest, strict=False):
        assert token.logprob == pytest.approx(row[token.id], abs=1e-5)
        assert [other.id for other in token.top] == np.argsort(-row, kind="stable")[:2].tolist()
