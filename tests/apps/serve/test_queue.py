"""The fair queue: sources take turns, places are told truly, and it is bounded."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.apps.serve.queue import Fair, Full


def filled(sources: list[str]) -> Fair[tuple[str, int]]:
    queue: Fair[tuple[str, int]] = Fair(1000)
    for index, source in enumerate(sources):
        queue.put(source, (source, index))
    return queue


def drained(queue: Fair[tuple[str, int]]) -> list[tuple[str, int]]:
    return [taken for _ in range(len(queue)) if (taken := queue.take()) is not None]


def test_sources_take_turns_and_each_keeps_its_order():
    assert [source for source, _ in drained(filled(list("aaabbc")))] == list("abcaba")


@given(st.lists(st.sampled_from("abcd"), max_size=30))
def test_places_are_where_things_turn_out_to_come(sources):
    queue = filled(sources)
    told = {thing: queue.place(thing) for thing in enumerate_things(sources)}
    for index, thing in enumerate(drained(queue)):
        assert told[thing] == index


def enumerate_things(sources: list[str]) -> list[tuple[str, int]]:
    return [(source, index) for index, source in enumerate(sources)]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.data())
def test_what_is_removed_does_not_come_and_everything_else_does(sources, data):
    queue = filled(sources)
    things = enumerate_things(sources)
    gone = data.draw(st.sampled_from(things))
    assert queue.remove(gone) and not queue.remove(gone)
    assert queue.place(gone) is None
    assert sorted(drained(queue)) == sorted(set(things) - {gone})


def test_it_is_bounded_in_all_and_for_each_source():
    queue: Fair[int] = Fair(4)
    queue.put("a", 1)
    queue.put("a", 2)
    with pytest.raises(Full, match="of this client"):
        queue.put("a", 3)
    queue.put("b", 4)
    queue.put("c", 5)
    with pytest.raises(Full, match="as many as may"):
        queue.put("d", 6)


def test_one_place_can_be_had():
    queue: Fair[int] = Fair(1)
    queue.put("a", 1)
    with pytest.raises(Full, match=r"^1 request is waiting already, which is as many as may$"):
        queue.put("b", 2)
    assert queue.take() == 1


@pytest.mark.parametrize(
    ("most", "words"),
    [(3, "1 request of this client is waiting"), (4, "2 requests of this client are waiting")],
)
def test_one_is_not_several(most, words):
    queue: Fair[int] = Fair(most)
    for thing in range(most // 2):
        queue.put("a", thing)
    with pytest.raises(Full, match=f"^{words} already$"):
        queue.put("a", 9)


def test_closing_gives_back_what_waits_and_wakes_who_takes():
    queue: Fair[int] = Fair(8)
    taken: list[int | None] = [0]
    thread = threading.Thread(target=lambda: taken.append(queue.take()))
    thread.start()
    queue.put("a", 1)
    thread.join(5)
    queue.put("a", 2)
    assert queue.close() == [2] and taken == [0, 1]
    assert queue.take() is None
    with pytest.raises(Full, match="stopping"):
        queue.put("a", 3)
