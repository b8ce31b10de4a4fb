"""Sizes as people write them, and back."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flashmoe.errors import InputError
from flashmoe.stream.units import format_bytes, parse_bytes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("123", 123),
        ("0B", 0),
        ("8GiB", 8 * GIB),
        ("8G", 8 * GIB),
        ("8g", 8 * GIB),
        (" 8 gib ", 8 * GIB),
        ("8GB", 8_000_000_000),
        ("500MB", 500_000_000),
        ("1.5KiB", 1536),
        ("2T", 2 << 40),
    ],
)
def test_sizes_as_people_write_them(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "8X", "8GiBs", "1e9", "0x10", "1,5G", "٣", "9" * 30]
)
def test_what_is_not_a_size_is_named_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(repr(text)) + ".*8GiB.*500MB"):
        parse_bytes(text)


@given(st.integers(0, 1 << 50))
@example(1152)  # 1.125 KiB, written as 1.12
def test_formatted_sizes_read_back_to_three_digits(nbytes: int) -> None:
    text = format_bytes(nbytes)
    again = parse_bytes(text.removesuffix(" bytes"))
    # Half of the last digit, and the part of a byte that parsing cuts off.
    assert -(nbytes * 0.005 + 1) < again - nbytes <= nbytes * 0.005
