"""Given texts: their log-probabilities are those of the logits, over words alone."""

from __future__ import annotations

import numpy as np
import pytest

from flashmoe import Budget, Engine, Sampling
from flashmoe.errors import InputError, StoreError
from flashmoe.scoring import log_probabilities, prompt_logprobs, words_of
from tests.apps.conftest import write_speaking_store

IDS = [int(i) for i in np.random.default_rng(2).integers(0, 102, 70)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    store = write_speaking_store(tmp_path_factory.mktemp("scoring") / "store")
    with Engine.open(store, budget=Budget(kv="f32"), dtype="float64") as engine:
        yield engine


def test_log_probabilities_are_those_of_the_logits_without_padding(engine):
    words = words_of(engine)
    assert words == 102 < engine.shape.vocabulary
    logits = engine.session().logits(IDS)[:, :words]
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = list(prompt_logprobs(engine, engine.session(), IDS, 3))
    assert [choice.id for choice in found] == IDS
    assert found[0].logprob is None and found[0].top == ()
    for row, choice in zip(expected, found[1:], strict=False):
        assert choice.logprob == pytest.approx(row[choice.id], abs=1e-9)
        best = np.argsort(-row)[:3]
        assert [id for id, _ in choice.top] == best.tolist()
        assert [value for _, value in choice.top] == pytest.approx(row[best], abs=1e-9)
        if choice.id == best[0]:
            assert choice.top[0][1] == choice.logprob, "the very same number: lm-eval compares them"


def test_the_session_goes_on_behind_the_prompt(engine):
    session, sampling = engine.session(), Sampling(temperature=0, max_tokens=4, logprobs=1)
    list(prompt_logprobs(engine, session, IDS[:20]))
    on = list(session.generate((), sampling))
    assert [s.id for s in on] == [s.id for s in engine.session().generate(IDS[:20], sampling)]
    again = list(prompt_logprobs(engine, engine.session(), [*IDS[:20], *(s.id for s in on)]))[20:]
    assert [c.logprob for c in again] == pytest.approx([s.logprob for s in on], abs=1e-9)


def test_what_cannot_be_scored_is_refused_at_once(engine):
    with pytest.raises(InputError, match="id 102 is no word of this model: ids end at 101"):
        prompt_logprobs(engine, engine.session(), [5, 102])
    with pytest.raises(InputError, match="no ids"):
        prompt_logprobs(engine, engine.session(), [])
    session = engine.session()
    session.logits([1])
    with pytest.raises(InputError, match="new session"):
        prompt_logprobs(engine, session, [1])


def test_damaged_logits_are_named():
    row = np.zeros(8, np.float32)
    row[3] = np.nan
    with pytest.raises(StoreError, match="1 of 7 logits are not finite"):
        log_probabilities(row, 7)
    row[3] = np.inf
    with pytest.raises(StoreError, match="1 of 7 logits are not finite"), np.errstate(all="ignore"):
        log_probabilities(row, 7)
    assert np.exp(log_probabilities(np.zeros(8, np.float32), 7)).sum() == pytest.approx(1)
