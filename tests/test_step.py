"""The totals of a reply: sums, rates, and what counts to which."""

from flashmoe.step import Step, Totals


def step(**changes):
    fields = dict(
        id=1, text="a", logprob=0.0, top_logprobs=(), finish_reason=None, prompt_tokens=0,
        hits=3, misses=1, bytes_read=100, ms_read_wait=2.0, ms_total=10.0,
    )  # fmt: skip
    return Step(**{**fields, **changes})


def test_compute_is_what_is_left_of_the_total():
    assert step().ms_compute == 8.0


def test_the_prompt_counts_to_the_first_step_alone():
    totals = Totals.of([step(prompt_tokens=20, ms_total=100.0, bytes_read=900), step(), step()])
    assert (totals.prompt_tokens, totals.tokens) == (20, 3)
    assert totals.tokens_per_second == 100.0
    assert totals.prompt_tokens_per_second == 200.0
    assert totals.bytes_per_token == 100.0
    assert totals.bytes_read == 1100
    assert totals.hit_rate == 0.75


def test_nothing_measured_gives_no_rate():
    for steps in ([], [step()]):
        totals = Totals.of(steps)
        assert totals.tokens_per_second == 0 and totals.bytes_per_token == 0
