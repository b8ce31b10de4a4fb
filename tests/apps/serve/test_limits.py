"""Bodies: bounded in length, depth and time, and JSON to the letter."""

import asyncio
import gc
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.apps.serve import sse
from flashmoe.apps.serve.ask import BadRequest, Refusal
from flashmoe.apps.serve.limits import Gone, Limits, read_body
from flashmoe.apps.serve.limits import parsed as parsed_within
from flashmoe.apps.serve.room import Room, Share
from flashmoe.errors import InputError

ENOUGH_BYTES = 1 << 30

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=10,
)  # fmt: skip


def parsed(body, depth):
    return parsed_within(body, depth, ENOUGH_BYTES)[0]


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
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON: a whole number in it has too many digits"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON: it begins with a byte order mark"),
        (b'{"a": 1\n "b": 2}', "not JSON: .* at line 2, column 2"),
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


LIMITS = Limits(body_bytes=1024, body_s=0.05)


def read(receive, announced=None, room_bytes=ENOUGH_BYTES, limits=LIMITS):
    with Share(Room(room_bytes)) as share:
        return bytes(asyncio.run(read_body(receive, announced, limits, share)))


def test_a_body_is_put_together():
    assert read(received(b"abc", b"", b"def")) == b"abcdef"


@pytest.mark.parametrize("announced", [None, 3, 1 << 40])
def test_a_body_that_is_too_long_is_refused_whatever_was_announced(announced):
    with pytest.raises(Refusal) as caught:
        read(received(b"a" * 600, b"b" * 600), announced)
    assert caught.value.status == 413


def test_a_body_that_does_not_come_is_refused():
    with pytest.raises(Refusal) as caught:
        read(received(b"a", b"b", wait_s=0.04))
    assert caught.value.status == 408


def test_a_body_may_take_no_longer_than_a_request():
    with pytest.raises(Refusal) as caught:
        read(received(b"a", b"b", wait_s=0.04), limits=Limits(request_s=0.05))
    assert caught.value.status == 408 and "0.05 seconds" in caught.value.message


def test_a_body_that_there_is_no_room_for_is_taken_and_refused():
    room, left = Room(1000), [b"a" * 600, b"b" * 300, b"c" * 300, b"d"]

    async def receive():
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    with Share(room) as share, pytest.raises(Refusal) as caught:
        asyncio.run(read_body(receive, None, Limits(), share))
    assert caught.value.status == 503 and caught.value.retry_after and left == []
    assert room.used_bytes == 0


def test_a_client_that_goes_away_is_noticed():
    with pytest.raises(Gone):
        read(received(b"a", gone=True))


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"request_s": float("nan")}, "--request-timeout is nan"),
        ({"grace_s": float("inf")}, "--grace is inf"),
        ({"idle_s": -1.0}, "--idle-timeout is -1"),
        ({"write_s": 1e9}, "a week"),
        ({"body_bytes": 0}, "--max-body is 0 bytes"),
    ],
)
def test_limits_that_are_none_are_refused(bounds, words):
    with pytest.raises(InputError, match=words):
        Limits(**bounds)


HOSTILE = {
    "lists": b"[" + b"[]," * 20_000 + b"[]]",
    "objects": b"[" + b'{"":0},' * 20_000 + b"{}]",
    "names": b'{"":0' + b"".join(b',"%x":"%x"' % (n, n) for n in range(20_000)) + b"}",
    "words": b"[" + b'"ab",' * 20_000 + b'""]',
    "letters": '["漢字"'.encode() + ',"漢"'.encode() * 20_000 + b"]",
    "faces": b'["' + b"a" * 200_000 + '\U0001f600"]'.encode(),
    "escapes": b'["' + b"a" * 200_000 + rb'\ud83d\ude00"]',
    "numbers": b"[" + b"1.5," * 20_000 + b"1]",
    "code": b'["' + rb"\n" * 100_000 + b'"]',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_a_body_becomes_takes_no_more_memory_than_was_said(kind):
    body = b'{"a": ' + HOSTILE[kind] + b"}"
    gc.collect()
    tracemalloc.start()
    _, said = parsed_within(body, 64, ENOUGH_BYTES)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= said + 4096
    with pytest.raises(Refusal) as caught:
        parsed_within(body, 64, said - 1)
    assert caught.value.status == 413 and "of memory" in caught.value.message


@pytest.mark.parametrize("body", [b'"' * 400_000, rb'"' + rb"\"" * 400_000, b"\\" * 400_000])
def test_quotes_without_an_end_take_no_time(body):
    began = time.monotonic()
    with pytest.raises(BadRequest, match="not JSON"):
        parsed(body, 64)
    assert time.monotonic() - began < 5
