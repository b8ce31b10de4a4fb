"""The totals of a reply: sums, rates, and what counts to which."""

from flashmoe.sampler import Choice
from flashmoe.step import Step, Totals, step_of
from flashmoe.stream.counters import Counters


def step(**changes):
    fields = dict(
        id=1, text="a", logprob=0.0, top_logprobs=(), finish_reason=None, prompt_tokens=0,
        hits=3, misses=1, bytes_read=100, ms_read_wait=2.0, ms_total=10.0,
    )  # fmt: skip
    return Step(**{**fields, **changes})


def test_compute_is_what_is_left_of_the_total():
    assert step().ms_compute == 8.0


def test_copies_that_were_waited_for_are_no_arithmetic():
    assert step(ms_copy_wait=3.0).ms_compute == 5.0


def test_what_was_copied_is_summed():
    cost = dict(vram_hits=3, vram_misses=1, copied_bytes=100, ms_copy_wait=2.0)
    totals = Totals.of([step(**cost | {"copied_bytes": 900}), step(**cost), step(**cost)])
    assert (totals.vram_hits, totals.vram_misses, totals.vram_hit_rate) == (9, 3, 0.75)
    assert totals.copied_bytes == 1100 and totals.copied_bytes_per_token == 100.0
    assert totals.ms_copy_wait == 6.0
    assert step().vram_hits == Totals.of([step()]).vram_hit_rate == 0


def test_a_step_has_the_cost_of_each_of_its_passes():
    cost = [Counters(1, 2, 3, 4.0, 0, 0, 5, 6, 7, 8.0), Counters(vram_hits=10, copy_wait_ms=1.0)]
    found = step_of(Choice(1), "", None, 2, (0, 0), cost, 0.0, 0.0)
    assert (found.hits, found.misses, found.bytes_read, found.ms_read_wait) == (1, 2, 3, 4.0)
    assert (found.vram_hits, found.vram_misses, found.copied_bytes) == (15, 6, 7)
    assert found.ms_copy_wait == 9.0


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
