"""Chunks of a prompt: cut where the answer does not show it, and of the size that reads least."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from flashmoe.kernels.reference import CHUNK
from flashmoe.stream import chunks
from flashmoe.stream.chunks import LEAST_TOKENS, MOST_TOKENS, NEAR, RESIDENT_TOKENS

positions, lengths = st.integers(0, 9000), st.integers(1, 9000)
SIZES = range(LEAST_TOKENS, MOST_TOKENS + 1, CHUNK)


def cuts(position: int, total: int, size: int) -> list[int]:
    """Where the chunks of a chosen size end."""
    ends = [position]
    while ends[-1] < total:
        ends.append(chunks.ending(ends[-1], total, size))
    return ends


@given(positions, lengths, st.sampled_from(SIZES))
def test_chosen_chunks_end_at_multiples_of_64_and_none_has_one_token(
    position: int, waiting: int, size: int
) -> None:
    total = position + waiting
    ends = cuts(position, total, size)
    assert ends[-1] == total and all(end % CHUNK == 0 for end in ends[1:-1])
    taken = [end - begin for begin, end in pairwise(ends)]
    assert max(taken) <= chunks.longest(size, waiting) <= waiting
    assert min(taken) > 1 or waiting == 1
    assert len(taken) == chunks._passes(position, total, size)


@given(positions, lengths, st.integers(1, 300))
def test_chunks_of_a_given_size_end_at_its_multiples(
    position: int, waiting: int, size: int
) -> None:
    total, begin = position + waiting, position
    while begin < total:
        end = chunks.bordered(begin, total, size)
        assert end == total or end % size == 0
        assert 0 < end - begin <= chunks.longest(size, total - begin)
        assert size == 1 or waiting == 1 or end - begin > 1
        begin = end


@given(positions, lengths, st.integers(0, 5000), st.integers(0, 5), st.integers(258, 5000))
def test_no_other_size_reads_noticeably_less(
    position: int, waiting: int, slots: int, displaced: int, fits: int
) -> None:
    """A made-up model of 5,000 experts, of which a chunk's scratch displaces some a token."""
    total = position + waiting

    def missing(tokens: int) -> int | None:
        return None if tokens > fits else 5000 - max(slots - displaced * tokens, 0)

    def cost(size: int) -> int | None:
        absent = missing(chunks.longest(size, waiting))
        return None if absent is None else (len(cuts(position, total, size)) - 1) * absent

    size = chunks.choose(position, total, missing)
    assert size in SIZES
    found = cost(size)
    assert found is not None
    costs = [each for each in map(cost, SIZES) if each is not None]
    assert found <= (1 + NEAR) * min(costs)
    shorter = [cost(each) for each in SIZES if each < size]
    assert not found or all(each is None or each > found / (1 + NEAR) for each in shorter)


def test_where_nothing_is_missing_chunks_are_of_moderate_size() -> None:
    assert chunks.choose(0, 4096, lambda tokens: 0) == RESIDENT_TOKENS
    assert chunks.choose(0, 4096, lambda tokens: 0 if tokens < 400 else 9) == 384
    assert chunks.choose(0, 30, lambda tokens: 0) == LEAST_TOKENS


def test_a_prompt_that_fits_one_chunk_passes_whole() -> None:
    size = chunks.choose(70, 70 + 1000, lambda tokens: 1000)
    assert chunks.ending(70, 1070, size) == 1070


def test_where_scratch_costs_nothing_chunks_are_long_and_where_it_costs_much_short() -> None:
    assert chunks.choose(0, 100_000, lambda tokens: 1000) >= MOST_TOKENS * 0.95
    assert chunks.choose(0, 100_000, lambda tokens: 10 + 20 * tokens) < 400
    assert chunks.choose(0, 100_000, lambda tokens: None) == LEAST_TOKENS
