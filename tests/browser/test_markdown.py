"""Markdown as the page draws it: what each construct becomes, piece by piece or at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.apps.serve.page_server import HOSTILE, MARKDOWN
from tests.browser.conftest import Visit

DRAW = """async (texts) => {
  const { render } = await import("/web/markdown.js");
  const target = document.createElement("div");
  for (const text of texts) render(target, text);
  return target.innerHTML;
}"""


@pytest.fixture
def draw(visit: Callable[..., Visit]) -> Iterator[Callable[..., str]]:
    page: Any = visit().page
    yield lambda *texts: page.evaluate(DRAW, list(texts))


def link(address: str, text: str) -> str:
    rest = 'target="_blank" rel="noopener noreferrer nofollow"'
    return f'<a href="{address}" {rest}>{text}</a>'


CASES = {
    "a *b* **c** ***d*** ~~e~~": "<p>a <em>b</em> <strong>c</strong> "
    "<strong><em>d</em></strong> <del>e</del></p>",
    "snake_case_name and _this_": "<p>snake_case_name and <em>this</em></p>",
    "2 * 3 * 4 and **open": "<p>2 * 3 * 4 and **open</p>",
    "`a*b*` and ``c`d``": "<p><code>a*b*</code> and <code>c`d</code></p>",
    "\\*not\\* <i>": "<p>*not* &lt;i&gt;</p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "# One\n## Two #": "<h3>One</h3><h4>Two</h4>",
    "---": "<hr>",
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "- a\n  - b\n- c": "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "[a](https://a.org/x_(y))": f"<p>{link('https://a.org/x_(y)', 'a')}</p>",
    "see https://a.org/b.": f"<p>see {link('https://a.org/b', 'https://a.org/b')}.</p>",
    "[a](javascript:alert(1))": '<p><span title="javascript:alert(1)">a</span></p>',
    "[a](data:text/html,x)": '<p><span title="data:text/html,x">a</span></p>',
    "[**a](/b)": '<p><span title="/b">**a</span></p>',
    "a | b": "<p>a | b</p>",
}


def test_each_construct(draw: Callable[..., str]) -> None:
    assert {text: draw(text) for text in CASES} == CASES


def test_code_and_tables(draw: Callable[..., str]) -> None:
    drawn = draw("```py\nx = 1 < 2\n```\n\n|a|b|\n|-|-:|\n|1|2 \\| 3|")
    assert "<code>x = 1 &lt; 2</code>" in drawn and "<span>py</span>" in drawn
    assert '<td class="end">2 | 3</td>' in drawn


@pytest.mark.parametrize("text", [MARKDOWN, HOSTILE, "\n\n".join(CASES)], ids=["m", "h", "cases"])
def test_piece_by_piece_is_the_same_as_at_once(draw: Callable[..., str], text: str) -> None:
    pieces = [text[:end] for end in range(0, len(text), 3)]
    assert draw(*pieces, text) == draw(text)


@pytest.mark.parametrize(
    "text",
    ["*" * 20_000, "**a " * 8_000, "[" * 20_000, "`" * 9_999 + " `" * 5_000, "> " * 9_000,
     "- " * 9_000, "_a*b_" * 4_000, "<a" * 9_000, "http://" * 3_000],
    ids=["stars", "open", "brackets", "ticks", "quotes", "items", "crossed", "angles", "links"],
)  # fmt: skip
def test_no_text_takes_long(visit: Callable[..., Visit], text: str) -> None:
    took = visit().page.evaluate(
        f"async (texts) => {{ const began = performance.now(); await ({DRAW})(texts); "
        "return performance.now() - began; }",
        [text],
    )
    assert took < 2_000
