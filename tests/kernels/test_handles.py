"""What is kept for an object: made once, never given to another."""

from __future__ import annotations

import gc
import weakref

from flashmoe.kernels.handles import Handles


class Owner:
    """Something that can be referred to weakly."""


def test_made_once_and_forgotten_with_its_owner() -> None:
    made: list[int] = []
    handles = Handles[Owner, int](lambda owner: made.append(id(owner)) or len(made))
    owners = [Owner(), Owner()]
    assert [handles(owner) for owner in owners * 2] == [1, 2, 1, 2]
    assert len(handles) == 2
    del owners[0]
    gc.collect()
    assert len(handles) == 1


def test_what_an_interrupt_has_left_is_not_believed() -> None:
    """The entry of an object that is gone, under the identity of one that lives."""
    handles = Handles[Owner, str](lambda owner: "its own")
    gone, owner = Owner(), Owner()
    handles._kept[id(owner)] = weakref.ref(gone), "another's"
    del gone
    assert handles(owner) == "its own"
