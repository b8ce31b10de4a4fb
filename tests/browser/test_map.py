"""The live map in a real browser: it moves, says the same in words, and rests when unwatched."""

from __future__ import annotations

from collections.abc import Callable

from tests.browser.conftest import Visit

Visits = Callable[..., Visit]
PICTURE = "document.querySelector('#map').toDataURL()"


def test_the_map_moves_while_the_model_works_and_tells_figures(visit: Visits) -> None:
    one = visit()
    one.until("document.querySelector('#pulse').textContent === 'idle'")
    one.until("document.querySelector('#map').width > 300")
    still = one.page.evaluate(PICTURE)
    one.say("Go on for ever")
    one.until("document.querySelector('#pulse').textContent === 'live'")
    one.until("document.querySelector('#hit-rate').textContent.includes('%')")
    one.until(f"{PICTURE} !== {still!r}")
    for name, unit in {"speed": "tok/s", "read": "B", "wait": "ms"}.items():
        assert one.page.locator(f"#{name}").inner_text().endswith(unit)
    one.page.keyboard.press("Escape")
    one.until("document.querySelector('#pulse').textContent === 'idle'")


def test_the_same_in_words(visit: Visits) -> None:
    one = visit()
    one.say("Hello")
    one.hear()
    label = one.page.locator("#map").get_attribute("aria-label")
    assert label.startswith("Map of 12 layers of 48 experts:") and "hits" in label
    one.page.get_by_text("As a table").click()
    rows = one.page.locator("#table tbody tr")
    one.until("document.querySelectorAll('#table tbody tr').length === 12")
    cells = [int(cell) for cell in rows.nth(3).locator("td").all_inner_texts()]
    assert len(cells) == 4 and 0 < cells[0] <= 48
    assert one.page.locator("#legend li").all_inner_texts() == [
        "on the drive", "in memory", "hit", "miss", "being read",
    ]  # fmt: skip


def test_an_expert_under_the_pointer_is_named(visit: Visits) -> None:
    one = visit()
    one.until("document.querySelector('#map').width > 300")
    one.page.hover("#map", position={"x": 30, "y": 5})
    assert one.page.locator("#point").inner_text().startswith("Layer 0, expert 0: ")


def test_nobody_listens_while_the_map_is_closed(visit: Visits) -> None:
    one = visit()
    looks = 0
    taken = one.server.script.view.states

    def counted():
        nonlocal looks
        looks += 1
        return taken()

    one.server.script.view.states = counted
    one.page.wait_for_timeout(500)
    assert looks
    one.page.click("#open-experts")
    one.page.wait_for_timeout(500)
    before = looks
    one.page.wait_for_timeout(500)
    assert looks == before
    one.page.click("#open-experts")
    one.page.wait_for_timeout(1000)
    assert looks > before
