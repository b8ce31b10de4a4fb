"""The page before the real server, with the demo model: words, a call, and experts that move."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from flashmoe.engine import Engine
from flashmoe.options import Budget
from tests.apps.serve.conftest import running
from tests.browser.conftest import PATIENCE_MS

BUDGET = Budget(context_tokens=2048, slots=96)


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """Open, before a server that has room for few experts."""
    problems: list[str] = []
    with (
        Engine.open("demo", budget=BUDGET, grammars=True) as engine,
        running(engine) as site,
    ):
        context = chromium.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda line: problems.append(line.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(site.url + "/")
        yield page
        context.close()
    assert not problems


def test_the_demo_calls_a_tool_and_its_experts_are_seen(page: Any) -> None:
    page.get_by_role("button", name="What is the weather in Paris on Monday?").click()
    reply = page.locator(".reply[aria-busy=false]").first
    reply.locator(".deeds").wait_for(state="visible")
    assert reply.locator(".call-head code").inner_text() == "get_weather"
    given = json.loads(reply.locator(".call pre").inner_text())
    assert set(given) == {"city", "day"}
    assert page.locator("#model").inner_text() == "demo"
    assert "tokens · first after" in reply.locator(".cost").inner_text()
    page.get_by_text("As a table").click()
    page.locator("#table tbody tr").nth(7).wait_for()
    label = page.locator("#map").get_attribute("aria-label")
    assert label.startswith("Map of 8 layers of 32 experts:")
    assert page.locator("#hit-rate").inner_text().endswith("%")
    assert "of 256 experts in memory, room for 96" in page.locator("#held").inner_text()


def test_each_suggestion_is_answered_and_thinking_can_be_tried(page: Any) -> None:
    suggestions = page.locator(".suggestion").all_inner_texts()
    assert len(suggestions) == 3
    for text in suggestions:
        page.get_by_role("button", name=text).click()
        reply = page.locator(".reply[aria-busy=false]").first
        reply.locator(".deeds").wait_for(state="visible")
        said = reply.locator(".prose").inner_text().strip()
        called = reply.locator(".call").count()
        assert bool(said) != bool(called), text
        assert "<" not in said and not reply.locator(".ending").is_visible()
        page.get_by_role("button", name="New conversation").click()
    page.click("#open-settings")
    page.get_by_label("Thinking").select_option("on")
    page.get_by_role("button", name="Use these").click()
    page.fill("#ask", "Hello")
    page.press("#ask", "Enter")
    reply = page.locator(".reply[aria-busy=false]").first
    reply.locator(".deeds").wait_for(state="visible")
    assert "without an answer" in reply.locator(".ending").inner_text()
