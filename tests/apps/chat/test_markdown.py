"""Markdown in blocks: final ones stay as they are, and none of the text is lost."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from flashmoe.apps.chat.markdown import Blocks, shown

TEXT = """# A heading

A paragraph of
two lines with **bold** and `code`.

- one
- two

  still two
- three

1. first

2. second

```python
def f():

    return 1
```
After it.

| a | b |
|---|---|
| 1 | 2 |

> quoted

---
The end <b>here</b>."""


def cut(text: str, sizes: list[int]) -> tuple[list[str], Blocks]:
    """The text pushed in pieces of these sizes, over and over."""
    blocks, found, at, turn = Blocks(), [], 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        found += blocks.push(text[at : at + size])
        at, turn = at + size, turn + 1
    return found + blocks.finish(), blocks


def rendered(block: str, width: int = 60) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(shown(block))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_each_block_is_handed_on_when_the_next_one_begins() -> None:
    blocks = Blocks()
    assert blocks.push("# A heading\n\nA para") == ["# A heading\n\n"]
    assert blocks.rest == "A para"
    assert blocks.push("graph\nof two lines\n") == []
    assert blocks.push("\n```\ncode\n\nmore") == ["A paragraph\nof two lines\n\n"]
    assert blocks.push("\n\n# no heading\n```\n") == []
    assert blocks.push("x") == ["```\ncode\n\nmore\n\n# no heading\n```\n"]
    assert blocks.finish() == ["x"] and blocks.rest == "" and blocks.finish() == []


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_the_pieces_do_not_matter(sizes: list[int]) -> None:
    found, _ = cut(TEXT, sizes)
    whole, _ = cut(TEXT, [len(TEXT)])
    assert "".join(found) == TEXT
    assert found == whole


@given(
    st.text(alphabet="ab 1.)-*_`#>|\n\t~=+:[]()<&\x0b\x0c\x85\u2028"),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_no_text_is_lost_or_held_twice(text: str, sizes: list[int]) -> None:
    blocks, found, at = Blocks(), "", 0
    for size in sizes * (len(text) + 1):
        found += "".join(blocks.push(text[at : at + size]))
        at += size
        assert found + blocks.rest == text[:at]
        if at >= len(text):
            return


def test_what_is_final_renders_as_it_does_in_the_whole() -> None:
    """Block by block is what all at once would be, but for blank lines."""
    found, _ = cut(TEXT, [3])
    apart = "".join(rendered(block) for block in found)
    lines = [line.rstrip() for line in apart.splitlines() if line.strip()]
    assert lines == [line.rstrip() for line in rendered(TEXT).splitlines() if line.strip()]


@pytest.mark.parametrize(
    "text",
    ["a <b>tag</b>", "<div>\nblock\n</div>", "<!-- note -->", "<tool_call>", "`<think>`", "a & b"],
)
def test_tags_are_text(text: str) -> None:
    assert rendered(text).split() == text.replace("`", "").split()


def test_addresses_can_be_read_and_nothing_hides_behind_them() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor")
    console.print(shown("[bank](https://evil.example) <https://a.example>"))
    assert isinstance(console.file, io.StringIO)
    written = console.file.getvalue()
    assert "https://evil.example" in written and "\x1b]8" not in written


@pytest.mark.parametrize("width", [1, 2, 10])
def test_narrow_windows(width: int) -> None:
    assert rendered(TEXT, width)
