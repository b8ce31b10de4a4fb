"""Which tokens belong to the content, and their bytes."""

from dataclasses import replace

from flashmoe.apps.serve.tokens import TokenLog
from flashmoe.step import Step
from flashmoe.text.pieces import Call, Content, Reasoning

STEP = Step(0, "", -1.0, (), None, 0, 0, 0, 0, 0.0, 0.0)


def steps(engine, text):
    ids = engine.tokenizer.encode(text)
    return [replace(STEP, id=id, top_logprobs=((id, -1.0), (ids[0], -2.0))) for id in ids]


def test_tokens_come_with_the_content_that_they_make(engine):
    log = TokenLog(engine)
    *first, last = steps(engine, "naïve 🦉")
    assert all(log.push(step, ()) == () for step in first)
    tokens = log.push(last, (Content("naïve 🦉"),))
    assert b"".join(token.data for token in tokens).decode() == "naïve 🦉"
    assert tokens[0].top[1].logprob == -2.0 and tokens[0].top[1].top == ()


def test_tokens_of_reasoning_and_calls_belong_to_nothing(engine):
    log = TokenLog(engine)
    one, two, three = steps(engine, "a b c")[:3]
    assert log.push(one, (Reasoning("a"),)) == ()
    assert log.push(two, (Call("f", "{}"),)) == ()
    (token,) = log.push(three, (Content("c"),))
    assert token.id == three.id


def test_what_parts_reasoning_from_content_belongs_to_nothing(engine):
    log = TokenLog(engine)
    close = engine.syntax.think_close
    assert close is not None and close.id is not None
    assert log.push(replace(STEP, id=close.id), ()) == ()
    (step,) = steps(engine, "a")
    assert [token.id for token in log.push(step, (Content("a"),))] == [step.id]


def test_nothing_is_collected_where_nothing_was_asked_for(engine):
    log = TokenLog(engine)
    assert log.push(replace(STEP, id=5, logprob=None), (Content("a"),)) == ()
