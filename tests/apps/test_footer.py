"""The footer: one wording, one set of JSON keys, the numbers of Totals."""

from __future__ import annotations

import json

import pytest

from flashmoe.apps.footer import KEYS, VRAM_KEYS, Footer, VramShare
from flashmoe.step import Step, Totals

SHARE = VramShare("A GPU", 8 << 30, 2000)


def step(prompt_tokens: int, bytes_read: int, ms: float, **more: float) -> Step:
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
        **more,
    )


def footer(
    *steps: Step, io: str = "direct", withheld_slots: int = 0, vram: VramShare | None = None
) -> Footer:
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
        vram=vram,
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


def test_where_a_gpu_computes_its_share_is_told():
    copied = {"vram_hits": 6, "vram_misses": 4, "ms_copy_wait": 2.5}
    steps = [
        step(9, 10**9, 500, copied_bytes=9 * 10**9, **copied),
        step(0, 2 * 10**9, 100, copied_bytes=10**9, **copied),
        step(0, 10**9, 100, copied_bytes=4 * 10**9, **copied),
    ]
    found = footer(*steps, vram=SHARE)
    assert found.line() == (
        "9 prompt tokens, 3 tokens, 10.0 tok/s, TTFT 0.50 s, 18 hits in VRAM (60.0%), 9 in RAM, "
        "3 misses, 2.5 GB copied a token, 1.5 GB read a token, peak memory 1.50 GiB"
    )
    told = json.loads(found.to_json(logprobs=[]))
    assert list(told) == [*KEYS, *VRAM_KEYS, "logprobs"]
    assert told["gpu"] == "A GPU" and told["vram_bytes"] == 8 << 30 and told["vram_slots"] == 2000
    assert (told["vram_hits"], told["vram_misses"], told["vram_hit_rate"]) == (18, 12, 0.6)
    assert told["copied_bytes"] == 14 * 10**9 and told["copied_bytes_per_token"] == 2.5e9
    assert told["ms_copy_wait"] == 7.5
    plain = footer(*steps)
    assert "VRAM" not in plain.line() and "copied" not in plain.line()
    assert list(json.loads(plain.to_json())) == list(KEYS)


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
