"""What requests may take of memory: the division, and the count of what is taken."""

import threading

import pytest

from flashmoe.apps.serve.ask import Token
from flashmoe.apps.serve.limits import Limits
from flashmoe.apps.serve.room import TOKEN_BYTES, Room, Share, Sizes, spoken_bytes
from flashmoe.text.pieces import Call, Content, Reasoning

MiB = 1 << 20


def test_a_room_is_never_overfull_and_shares_give_everything_back():
    room = Room(100)
    with Share(room) as first, Share(room, most_bytes=30) as second:
        assert first.grow(60) and second.grow(30)
        assert not second.grow(1), "more than a share may have"
        assert not first.grow(11) and room.used_bytes == 90
        assert first.grow(10) and not second.grow(0 + 1)
    assert room.used_bytes == 0


def test_a_closed_share_takes_nothing():
    room = Room(10)
    share = Share(room)
    assert share.grow(10)
    share.close()
    share.close()
    assert share.grow(50) and room.used_bytes == 0


def test_many_threads_count_right():
    room, refused = Room(1000), []

    def work():
        for _ in range(300):
            with Share(room) as share:
                if not share.grow(400):
                    refused.append(1)
                assert 0 <= room.used_bytes <= 1000

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert room.used_bytes == 0


@pytest.mark.parametrize("context", [256, 4096, 262_144])
@pytest.mark.parametrize("body", [1 << 10, 4 * MiB, 64 * MiB])
def test_whatever_a_limit_admits_finds_room_in_an_empty_server(context, body):
    limits = Limits(body_bytes=body)
    sizes = Sizes.of(limits, context)
    assert sizes.bodies_bytes >= body
    assert sizes.turns_bytes >= sizes.parsed_bytes >= 8 * body
    assert sizes.replies_bytes >= sizes.reply_bytes >= sizes.reply_tokens * TOKEN_BYTES
    assert sizes.reply_tokens >= 2 * context, "an evaluation's prompt with one alternative each"


def test_the_sum_grows_with_every_limit():
    total = Sizes.of(Limits(), 4096).total_bytes
    assert 100 * MiB < total < 256 * MiB
    assert Sizes.of(Limits(connections=512), 4096).total_bytes > total
    assert Sizes.of(Limits(body_bytes=8 * MiB), 4096).total_bytes > total
    assert Sizes.of(Limits(), 32_768).total_bytes > total


def test_what_is_said_is_weighed():
    pieces = (Reasoning("abcd"), Content("ab"), Call("f", "{}"))
    other = Token(1, "b", b"b", -1.0)
    token = Token(0, "a", b"a", -0.1, (other, other))
    assert spoken_bytes(pieces, ()) > 0
    assert spoken_bytes(pieces, (token,)) - spoken_bytes(pieces, ()) == 3 * TOKEN_BYTES
