"""The page for everyone: axe finds nothing, the keyboard reaches all, light and dark are readable.

axe-core (MPL-2.0) comes inside the package axe-playwright-python, which these tests alone use.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest

from tests.browser.conftest import DESK, PHONE, Visit, absent

Visits = Callable[..., Visit]


def faults(visit: Visit) -> list[str]:
    """What axe finds, best practices included."""
    if importlib.util.find_spec("axe_playwright_python") is None:
        absent("axe is missing; pip install axe-playwright-python")
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(visit.page).response["violations"]
    return [f"{one['id']}: {[node['html'][:120] for node in one['nodes']]}" for one in found]


def begin(visit: Visit) -> None:
    """Where the first Tab leads to what comes first."""
    visit.page.evaluate("document.body.tabIndex = -1, document.body.focus()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing(visit: Visits, scheme: str, size: dict[str, int]) -> None:
    # axe puts its own script into the page, which the page's policy forbids.
    one = visit(size=size, color_scheme=scheme, bypass_csp=True)
    assert not faults(one)
    one.say("Please think")
    one.hear().locator(".thinking summary").click()
    one.page.get_by_role("button", name="Settings of this conversation").first.click()
    one.page.get_by_role("button", name="Take an example").click()
    assert not faults(one)
    one.page.get_by_role("button", name="Use these").click()
    one.say("The weather?")
    one.hear(2)
    if size is PHONE:
        assert not faults(one)
        one.page.click("#open-experts")
    one.page.get_by_text("As a table").click()
    one.page.wait_for_timeout(1200)  # for the table's first rows
    assert not faults(one)


def test_the_first_key_leads_to_the_message_box(visit: Visits) -> None:
    one = visit()
    begin(one)
    one.page.keyboard.press("Tab")
    assert one.page.evaluate("document.activeElement.textContent") == "Skip to the message box"
    one.page.keyboard.press("Enter")
    assert one.page.evaluate("document.activeElement.id") == "ask"


def test_the_keyboard_reaches_everything_in_the_order_in_which_it_stands(visit: Visits) -> None:
    one = visit()
    one.say("Hello")
    one.hear()
    begin(one)
    reached = []
    for _ in range(30):
        one.page.keyboard.press("Tab")
        reached.append(
            one.page.evaluate(
                "(document.activeElement.ariaLabel || document.activeElement.textContent).trim()"
            )
        )
    order = [
        "Skip to the message box", "New conversation", "Hello", "Conversations",
        "Map of experts", "Edit", "Copy", "Again", "Send", "As a table",
    ]  # fmt: skip
    places = [reached.index(name) for name in order]
    assert places == sorted(places)


def test_shift_and_enter_begin_a_line(visit: Visits) -> None:
    one = visit()
    one.page.fill("#ask", "One")
    one.page.press("#ask", "Shift+Enter")
    one.page.keyboard.type("two")
    assert one.page.input_value("#ask") == "One\ntwo" and not one.asked
    one.page.keyboard.press("Enter")
    one.hear()
    assert one.asked[0]["messages"][0]["content"] == "One\ntwo"


def test_light_dark_and_the_system_s_choice(visit: Visits) -> None:
    one = visit(color_scheme="dark")

    def ground() -> int:
        found = one.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(found.removeprefix("rgb(").split(",")[0])

    assert ground() < 60
    one.page.click("#theme")
    assert one.page.locator("#theme").get_attribute("aria-label") == "Theme: Light"
    assert ground() > 200
    one.page.reload()
    assert ground() > 200
    one.page.click("#theme")
    assert ground() < 60
    one.page.click("#theme")
    one.page.emulate_media(color_scheme="light")
    one.until("document.documentElement.dataset.colours === 'light'")
    assert ground() > 200
