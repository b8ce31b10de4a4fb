"""Bodies: bounded in length, depth and time, and JSON to the letter."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.apps.serve import sse
from flashmoe.apps.serve.ask import BadRequest, Refusal
from flashmoe.apps.serve.limits import Gone, Limits, parsed, read_body

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=10,
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), json_values, max_size=4))
def test_what_is_json_comes_back_as_it_was(body):
    assert parsed(sse.dumped(body).encode(), 64) == body


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' twice"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "nested over 64"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested over 64"),
    ],
)
def test_anything_else_is_refused(body, words):
    with pytest.raises(BadRequest, match=words):
        parsed(body, 64)


def test_the_last_of_very_many_names_is_found_to_be_one_too_many():
    """Comparing each name with each takes an hour."""
    names = ", ".join(f'"{number}": 0' for number in range(200_000))
    with pytest.raises(BadRequest, match="'199999' twice"):
        parsed(f'{{{names}, "199999": 1}}'.encode(), 8)


def test_the_deepest_that_may_be_is_taken():
    assert parsed(b'{"a": ' + b"[" * 63 + b"]" * 63 + b"}", 64)


def received(*parts: bytes, wait_s: float = 0.0, gone: bool = False):
    """An ASGI receive that gives these parts."""
    messages = [
        {"type": "http.request", "body": part, "more_body": gone or index + 1 < len(parts)}
        for index, part in enumerate(parts)
    ]

    async def receive():
        await asyncio.sleep(wait_s)
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    return receive


LIMITS = Limits(body_bytes=10, body_s=0.05)


def test_a_body_is_put_together():
    assert asyncio.run(read_body(received(b"abc", b"", b"def"), None, LIMITS)) == b"abcdef"


@pytest.mark.parametrize("announced", [None, 3, 1 << 40])
def test_a_body_that_is_too_long_is_refused_whatever_was_announced(announced):
    with pytest.raises(Refusal) as caught:
        asyncio.run(read_body(received(b"abcdef", b"ghijkl"), announced, LIMITS))
    assert caught.value.status == 413


def test_a_body_that_does_not_come_is_refused():
    with pytest.raises(Refusal) as caught:
        asyncio.run(read_body(received(b"a", b"b", wait_s=0.04), None, LIMITS))
    assert caught.value.status == 408


def test_a_client_that_goes_away_is_noticed():
    with pytest.raises(Gone):
        asyncio.run(read_body(received(b"a", gone=True), None, LIMITS))
