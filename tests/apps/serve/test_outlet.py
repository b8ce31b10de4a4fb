"""What goes out: in parts, with its headers, and not for ever."""

import asyncio

import pytest

from flashmoe.apps.serve.limits import Gone
from flashmoe.apps.serve.outlet import PART_BYTES, Outlet

START = {"type": "http.response.start", "status": 201, "headers": [(b"a", b"1")]}


def sent_by(messages):
    sent = []

    async def send(message):
        sent.append(message)

    async def all_of_them():
        out = Outlet(send, {"state": {}}, [(b"b", b"2")], 5.0)
        for message in messages:
            await out(message)
        return out.status

    assert asyncio.run(all_of_them()) == 201
    return sent


def test_every_response_has_its_headers_and_status():
    (start,) = sent_by([START])
    assert start["headers"] == [(b"a", b"1"), (b"b", b"2")]


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
def test_a_long_body_goes_in_parts_and_ends_once(size, more):
    body = bytes(range(251)) * (size // 251 + 1)
    message = {"type": "http.response.body", "body": body[:size], "more_body": more}
    _, *parts = sent_by([START, message])
    assert b"".join(part["body"] for part in parts) == body[:size]
    assert max(len(part["body"]) for part in parts) <= PART_BYTES
    assert [part["more_body"] for part in parts] == [True] * (len(parts) - 1) + [more]


def test_who_does_not_read_is_cut_off():
    aborted = []

    async def never(message):
        await asyncio.sleep(60)

    async def tried():
        scope = {"state": {"abort": lambda: aborted.append(1)}}
        with pytest.raises(Gone):
            await Outlet(never, scope, [], 0.05)(START)

    asyncio.run(tried())
    assert aborted == [1]
