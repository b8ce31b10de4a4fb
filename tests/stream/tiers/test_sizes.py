"""Slots of VRAM: never more than the budget holds, never fewer than a token needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.errors import BudgetError
from flashmoe.stream.tiers import sizes


@given(
    budget=st.integers(0, 1 << 34),
    records=st.lists(st.integers(1, 1 << 23), min_size=1, max_size=5),
    experts=st.integers(1, 300),
)
def test_slots_fill_the_budget_or_hold_every_expert(
    budget: int, records: list[int], experts: int
) -> None:
    size, every = sizes.slot_bytes(records), len(records) * experts
    assert size % 4096 == 0 and 0 <= size - max(records) < 4096
    if budget < size:
        with pytest.raises(BudgetError, match=f"at least {size:,} bytes"):
            sizes.slots(budget, records, experts, 1)
        return
    count = sizes.slots(budget, records, experts, 1)
    assert count == every or count * size <= budget < (count + 1) * size
    assert 1 <= count <= every


def test_a_token_must_fit() -> None:
    assert sizes.slots(8 * 4096, [100, 4096], 64, 8) == 8
    with pytest.raises(BudgetError, match="give at least 32,768 bytes"):
        sizes.slots(8 * 4096 - 1, [100, 4096], 64, 8)


def test_few_slots_have_none_to_spare() -> None:
    assert [sizes.spare(slots, 8) for slots in (8, 63, 64, 256, 4096)] == [0, 0, 1, 4, 8]
