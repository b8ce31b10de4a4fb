"""The footer: one wording, one set of JSON keys, the numbers of Totals."""

from __future__ import annotations

import json

import pytest

from flashmoe.apps.footer import KEYS, Footer
from flashmoe.step import Step, Totals


def step(prompt_tokens: int, bytes_read: int, ms: float) -> Step:
    return Step(
        id=1,
        text="x",
        logprob=None,
        top_logprobs=(),
        finish_reason=None,
        prompt_tokens=prompt_tokens,
        hits=3,
        misses=1,
        bytes_read=bytes_read,
        ms_read_wait=1.0,
        ms_total=ms,
    )


def footer(*steps: Step, io: str = "direct", withheld_slots: int = 0) -> Footer:
    return Footer(
        totals=Totals.of(steps),
        load_ms=20.0,
        peak_bytes=3 << 29,
        budget_bytes=2 << 30,
        slots=40,
        planned_slots=90,
        withheld_slots=withheld_slots,
        experts_per_token=4,
        finish_reason="stop",
        io=io,
    )


def test_hits_of_the_page_cache_are_unknown():
    found = footer(step(9, 10**9, 500), step(0, 10**9, 100), io="os")
    assert "6 hits" not in found.line() and "2 experts through the page cache" in found.line()
    assert json.loads(found.to_json())["hit_rate"] is None


def test_the_line_for_people():
    found = footer(step(9, 10**9, 500), step(0, 2 * 10**9, 100), step(0, 10**9, 100))
    assert found.line() == (
        "9 prompt tokens, 3 tokens, 10.0 tok/s, TTFT 0.50 s, 9 hits, 3 misses (75.0% hits), "
        "1.5 GB read a token, peak memory 1.50 GiB"
    )


def test_the_line_for_programs():
    found = json.loads(footer(step(9, 10, 500), step(0, 4, 100)).to_json(logprobs=[]))
    assert list(found) == [*KEYS, "logprobs"]
    assert found["ttft_ms"] == 500 and found["load_ms"] == 20
    assert found["tokens_per_second"] == 10 and found["prompt_tokens_per_second"] == 18
    assert found["bytes_read"] == 14 and found["bytes_per_token"] == 4
    assert found["peak_bytes"] == 3 << 29 and found["slots"] == 40


def test_a_reply_without_tokens_has_zeros():
    line = footer().line()
    assert line.startswith("0 prompt tokens, 0 tokens, 0.0 tok/s, TTFT 0.00 s")


@pytest.mark.parametrize(
    "nbytes, wanted",
    [(0, "0 GB"), (918, "0.000001 GB"), (918_000, "0.000918 GB"), (3_456_000_000, "3.46 GB")],
)
def test_small_reads_are_written_out(nbytes, wanted):
    assert f", {wanted} read a token" in footer(step(1, 0, 1), step(0, nbytes, 1)).line()


def test_a_cache_that_had_to_shrink_is_told_of():
    assert "slots left" not in footer().line()
    assert footer(withheld_slots=24).line().endswith("40 of 64 slots left (memory is short)")
