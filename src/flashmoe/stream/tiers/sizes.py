"""How many slots a budget of VRAM gives, and how many of them are kept empty.

Owns the formulas alone. What else is in VRAM, and how large the budget is, is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence

from flashmoe.errors import BudgetError
from flashmoe.store.layout import align

SPARE_SHARE = 64
"""One slot in so many is kept empty for hints: with slots for 10 to 25 % of OLMoE's experts that
costs 0.3 points of the hit rate in VRAM, one in 16 costs 1.6."""


def slot_bytes(record_bytes: Sequence[int]) -> int:
    """The size of a slot: the largest record, aligned."""
    return align(max(record_bytes))


def slots(budget_bytes: int, record_bytes: Sequence[int], experts: int, top_k: int) -> int:
    """The slots that so many bytes give: as many as there are experts at most, ``top_k`` at the
    least.

    ``record_bytes`` are those of an expert, a layer each, with ``experts`` a layer.

    Raises:
        BudgetError: the bytes are too few for the experts that one token chooses of a layer.
    """
    size = slot_bytes(record_bytes)
    count = min(budget_bytes // size, len(record_bytes) * experts)
    if count < top_k:
        raise BudgetError(
            f"{budget_bytes:,} bytes of VRAM for experts hold {max(count, 0)} of {size:,} bytes; "
            f"a token uses {top_k} of a layer at once: give at least {top_k * size:,} bytes"
        )
    return count


def spare(slots: int, top_k: int) -> int:
    """How many slots are kept empty for hints."""
    return min(top_k, slots // SPARE_SHARE)
