"""The pieces in memory: a bound that holds, and who leaves."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from flashmoe.prefix.memory import Memory

actions = st.lists(
    st.tuples(st.sampled_from(["make", "drop", "touch", "forget"]), st.integers(0, 5),
              st.integers(1, 60)), max_size=60)  # fmt: skip


@given(actions)
def test_the_bound_holds_and_the_oldest_leave_first(todo):
    memory, wanted = Memory(100), {}  # name -> size, the least recently used first
    for action, number, size in todo:
        name = str(number)
        if action in ("make", "drop"):
            piece = memory.take(size)
            while sum(wanted.values()) + size > 100:
                del wanted[next(iter(wanted))]
            assert piece is not None and len(piece) == size
            if action == "drop":
                memory.drop(piece)
            else:
                memory.keep(name, piece, waiting=False)
                wanted.pop(name, None)
                wanted[name] = size
        elif action == "touch":
            memory.touch([name])
            if name in wanted:
                wanted[name] = wanted.pop(name)
        else:
            memory.forget(name)
            wanted.pop(name, None)
        assert memory.names() == list(wanted)
        assert memory.used_bytes == sum(wanted.values()) <= 100
        assert [len(memory.get(name)) for name in wanted] == list(wanted.values())


def test_what_can_never_fit_is_not_waited_for():
    memory = Memory(100)
    assert memory.take(101) is None
    assert memory.take(80) is not None  # in the making
    assert memory.take(80) is None


def test_what_waits_to_be_written_stays_and_the_next_waits_for_it():
    memory, made = Memory(100), []
    memory.keep("old", memory.take(60), waiting=True)
    maker = threading.Thread(target=lambda: made.append(memory.take(60)))
    maker.start()
    maker.join(0.1)
    assert maker.is_alive() and "old" in memory
    memory.written("old")
    maker.join(10)
    assert len(made[0]) == 60 and "old" not in memory
