"""The live map in a real browser: it moves, says the same in words, and rests when unwatched."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flashmoe.stream.picture import ExpertState
from tests.apps.serve.page_server import MadeUpView, Script
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


def test_where_a_gpu_computes_there_is_one_state_more(visit: Visits) -> None:
    one = visit(Script(MadeUpView(12, 48, 4, vram_slots=100), pause_s=0.001))
    one.until("document.querySelector('#held').textContent.includes('in VRAM, room for 100')")
    assert one.page.locator("#legend li").all_inner_texts() == [
        "on the drive", "in memory", "in VRAM", "hit", "miss", "being read",
    ]  # fmt: skip
    states = one.server.script.view.states()
    assert not np.isin(states, (ExpertState.HIT, ExpertState.MISSED)).any()
    label = one.page.locator("#map").get_attribute("aria-label")
    above, below = (int((states == state).sum()) for state in (ExpertState.VRAM, 1))
    assert f" {above} in VRAM, {below} in memory alone, 0 being read" in label
    one.page.get_by_text("As a table").click()
    one.until("document.querySelectorAll('#table tbody tr').length === 12")
    heads = one.page.locator("#table thead th").all_inner_texts()
    assert heads == ["Layer", "In VRAM", "In memory", "Being read", "Hits", "Misses"]
    cells = one.page.locator("#table tbody tr").nth(3).locator("td").all_inner_texts()
    assert cells[:2] == [str(int((states[3] == state).sum())) for state in (ExpertState.VRAM, 1)]
    one.say("Go on for ever")
    one.until("document.querySelector('#copied').textContent.endsWith('B')")
    assert one.page.locator("#copy-wait").inner_text().endswith("ms")
    one.page.keyboard.press("Escape")


def test_without_a_gpu_nothing_tells_of_vram(visit: Visits) -> None:
    one = visit()
    one.until("document.querySelector('#held').textContent.includes('room for')")
    one.page.get_by_text("As a table").click()
    assert "VRAM" not in one.page.locator("#experts").inner_text()
    assert not one.page.locator("#copied").is_visible()


def test_an_expert_in_vram_looks_unlike_one_in_memory(visit: Visits) -> None:
    one = visit(Script(MadeUpView(12, 48, 4, vram_slots=100)))
    one.until("document.querySelectorAll('#legend li').length === 6")
    drawn = "[...document.querySelectorAll('#legend canvas')].map((each) => each.toDataURL())"
    assert len(set(one.page.evaluate(drawn))) == 6


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
