"""From the worker to the event loop: nothing is lost, and nobody is woken in vain."""

from flashmoe.apps.serve.ask import BadRequest, Outcome, Spoken, Token
from flashmoe.apps.serve.channel import APART, Began, Channel
from flashmoe.text.pieces import Call, Content, Reasoning
from flashmoe.turn import Usage

OUTCOME = Outcome((Content("x"),), "stop", None, Usage(1, 0, 1, 0))


def test_items_come_in_order_and_wake_once_a_look():
    woken: list[int] = []
    channel = Channel(lambda: woken.append(1), streams=True)
    items = [Began(3, 1), Spoken((Content("a"),)), OUTCOME]
    for item in items:
        channel.put(item)
    assert channel.take() == items and channel.take() == [] and len(woken) == 1


def test_what_nobody_reads_is_joined_and_nothing_of_it_lost():
    channel = Channel(lambda: None, streams=True)
    channel.put(Began(3, 1))
    for index in range(3 * APART):
        token = Token(index, "b", b"b", -1.0)
        channel.put(Spoken((Reasoning("a"), Content("b")), (token,)))
        channel.put(Spoken((Call("f", "{}"),)))
    channel.put(OUTCOME)
    items = channel.take()
    assert len(items) <= APART + 1
    assert items[0] == Began(3, 1) and items[-1] == OUTCOME
    spoken = [item for item in items if isinstance(item, Spoken)]
    pieces = [piece for item in spoken for piece in item.pieces]
    assert sum(isinstance(piece, Call) for piece in pieces) == 3 * APART
    tokens = [token.id for item in spoken for token in item.tokens]
    assert tokens == list(range(3 * APART))
    text = "".join(piece.text for piece in pieces if isinstance(piece, Content))
    assert text == "b" * 3 * APART


def test_only_the_end_is_told_where_nothing_is_streamed():
    channel = Channel(lambda: None, streams=False)
    channel.put(Spoken((Content("a"),)))
    refusal = BadRequest("no")
    channel.put(refusal)
    channel.put(OUTCOME)  # after the end there is nothing
    assert channel.take() == [refusal]
