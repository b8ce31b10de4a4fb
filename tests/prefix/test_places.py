"""Where states are kept: bounds that hold for every prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_shapes import model_shape

from flashmoe.prefix import places
from flashmoe.stream import sizes

positions = st.integers(0, 40_000)


def kept(start, total, chunk, apart, cut=frozenset()):
    """Where states are kept in a pass whose chunks end at multiples of ``chunk`` and at cuts."""
    due, before, found = places.along(start, total, apart), start, set()
    while before < total:
        end = min((before // chunk + 1) * chunk, total)
        end = min((one for one in cut if before < one < end), default=end)
        if places.is_kept(before, end, total, due, set(cut)):
            found.add(end)
        before = end
    return found


@given(positions, positions, st.lists(positions, max_size=9), positions, st.integers(1, 32))
def test_cuts_are_few_and_leave_no_single_token(start, more, marks, branch, units):
    total = start + more
    branch -= branch % 64
    cut = places.cuts(start, total, marks, branch)
    assert len(cut) <= places.MARKS_MOST + 1
    for one in cut:
        assert one % 64 == 0 and start + 64 <= one <= total - 2
    if start + 64 <= branch <= total - 2:
        assert branch in cut
    found = kept(start, total, 64 * units, 1024, cut)
    assert cut <= found and len(found) <= len(cut) + 2 * (total // 1024).bit_length()
    for stop in found - cut:
        assert stop % (64 * units) == 0 and start < stop <= total - 64
        assert all(abs(stop - one) >= 64 for one in cut)


@given(st.integers(2, 40_000), st.data(), st.sampled_from([256, 1024, 2048]))
def test_a_prompt_that_differs_late_finds_a_state_close_by(total, data, apart):
    differing = data.draw(st.integers(1, total))
    shared = total - differing
    nearest = max((stop for stop in kept(0, total, 64, apart) if stop <= shared), default=0)
    assert shared - nearest <= max(3 * differing, 2 * apart) + 64


@pytest.mark.parametrize(
    "chunk, wanted", [(64, {4096, 6144, 7168}), (1536, {4608, 6144, 7680}), (2048, {4096, 6144})]
)
def test_long_chunks_end_where_they_would_and_states_are_kept_there(chunk, wanted):
    assert kept(0, 8000, chunk, 1024) == wanted


def test_the_system_prompt_and_the_latest_turns_are_the_marks_that_count():
    marks = [1000, 2000, 3000, 4000, 5000, 6000]
    assert places.cuts(0, 7000, marks, 0) == {960, 3968, 4992, 5952}
    assert places.cuts(980, 7000, [1000], 0) == set()


def test_chunks_that_end_elsewhere_keep_nothing_in_between():
    assert kept(0, 4000, 100, 256) <= set(range(0, 4000, 1600))
    assert kept(0, 4000, 1, 256) == kept(0, 4000, 64, 256)


@pytest.mark.parametrize("name, wanted", [("qwen3.5-35b-a3b", 1024), ("qwen3.5-397b-a17b", 2048)])
def test_the_spacing_of_the_published_shapes(name, wanted):
    shape = model_shape(name)
    state, token = sizes.state_bytes(shape, 4), sizes.kv_bytes(shape, 1, 4, "bf16")
    assert places.spacing(state, token) == wanted
    assert places.spacing(0, token) == places.SPACING_LEAST
    assert places.spacing(state, 0) <= 1 << 14
