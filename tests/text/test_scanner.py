"""Marks are found by id or by text, however ids cut the text."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from flashmoe.text import Mark
from flashmoe.text.scanner import Scanner
from tests.text.replies import BY_ID, BY_TEXT, SPECIAL, TAGS, Pieces

FRAGMENTS = st.sampled_from([*TAGS, "<", "</", "think", ">", "<think", "tool_call>", "é", " ", "a"])
TEXTS = st.lists(FRAGMENTS, max_size=12).map("".join)


def scanned(data: list[bytes], marks: tuple[Mark, ...]) -> list[list[str | Mark]]:
    scanner = Scanner(Pieces(data), marks)
    found = [scanner.push(5 + index) for index in range(len(data))]
    return [*found, scanner.finish()]


def flat(pushes: list[list[str | Mark]]) -> list[str | Mark]:
    """All atoms, texts joined."""
    atoms: list[str | Mark] = []
    for atom in (atom for push in pushes for atom in push):
        if isinstance(atom, str) and atoms and isinstance(atoms[-1], str):
            atoms[-1] += atom
        else:
            atoms.append(atom)
    return atoms


@given(text=TEXTS, cuts=st.lists(st.integers(0, 99)))
@example(text="<<think>", cuts=[1, 2, 3])
@example(text="</th</think>", cuts=list(range(12)))
def test_cuts_change_nothing(text: str, cuts: list[int]) -> None:
    data = text.encode()
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [data[a:b] for a, b in pairwise(places)]
    found = flat(scanned(pieces, BY_TEXT))
    assert found == flat(scanned([data], BY_TEXT))
    assert "".join(a if isinstance(a, str) else a.text for a in found) == text
    texts = [atom for atom in found if isinstance(atom, str)]
    assert not any(tag in part for tag in TAGS for part in texts)


def test_only_what_may_become_a_mark_is_held() -> None:
    letters = [bytes([byte]) for byte in b"a<b</thin</think>c<"]
    texts = [
        "".join(a if isinstance(a, str) else "|" for a in p) for p in scanned(letters, BY_TEXT)
    ]
    assert texts == [
        "a", "", "<b", "", "", "", "", "", "", "</thin", "", "", "", "", "", "", "|", "c", "", "<",
    ]  # fmt: skip


def test_a_mark_with_an_id_is_met_by_its_id_alone() -> None:
    scanner = Scanner(Pieces([b"</think>", b"<"]), BY_ID)
    assert scanner.push(5) == ["</think>"]
    assert scanner.push(6) == ["<"]
    assert scanner.push(1) == [BY_ID[1]]
    assert scanner.finish() == []


def test_what_no_mark_can_continue_comes_before_a_mark_with_an_id() -> None:
    marks = (BY_ID[1], Mark("<tool_call>"))
    scanner = Scanner(Pieces([b"a<tool_", b"\xe2\x82"]), marks)
    assert scanner.push(5) == ["a"]
    assert scanner.push(1) == ["<tool_", BY_ID[1]]
    assert scanner.push(6) == []
    assert scanner.push(1) == ["\ufffd", BY_ID[1]]


def test_special_tokens_add_nothing_unless_they_are_marks() -> None:
    scanner = Scanner(Pieces([b"a"]), BY_TEXT)
    assert scanner.push(SPECIAL) == []
    assert scanner.push(99) == []
    scanner = Scanner(Pieces([b"a"]), (Mark("<|special|>", SPECIAL),))
    assert scanner.push(SPECIAL) == [Mark("<|special|>", SPECIAL)]


def test_half_a_character_ends_a_reply() -> None:
    for cut, expected in ((True, []), (False, ["\ufffd"])):
        scanner = Scanner(Pieces([b"a\xe2\x82"]), BY_TEXT)
        assert scanner.push(5) == ["a"]
        assert scanner.finish(cut=cut) == expected
