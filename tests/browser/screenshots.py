"""Draws the screenshots in docs/: ``python -m tests.browser.screenshots``, from the root.

The page is the real one. The model and its experts are made up (``page_server``), but for the call
of a tool, which the demo makes. Wants Pillow, which comes with the ``plot`` extra, for files of few
colours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from flashmoe.engine import Engine
from flashmoe.options import Budget
from tests.apps.serve.conftest import running
from tests.apps.serve.page_server import MadeUpView, Script, page_server
from tests.browser.conftest import CHROMIUM, PHONE

DOCS = Path(__file__).parents[2] / "docs"
DESK = {"width": 1280, "height": 800}
QUESTION = "Please think: what is a mixture of experts?"
COLOURS = 128
PATIENCE_MS = 400_000


def draw(browser: Any, name: str, *, experts: bool = False, **options: Any) -> None:
    script = Script(MadeUpView(), pause_s=0.002)
    with page_server(script) as server:
        context = browser.new_context(**options)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(server.url)
        page.fill("#ask", QUESTION)
        page.press("#ask", "Enter")
        page.locator(".reply[aria-busy=false] .deeds").wait_for(state="visible")
        if experts:
            page.click("#open-experts")
        page.evaluate("document.querySelector('#scroll').scrollTop = 0")
        page.evaluate("document.activeElement.blur()")
        script.view.working = True
        keep(page, name)
        context.close()


def draw_call(browser: Any, name: str) -> None:
    """What the demo does, with little room for its experts."""
    budget = Budget(context_tokens=2048, slots=96)
    with Engine.open("demo", budget=budget, grammars=True) as engine, running(engine) as site:
        context = browser.new_context(viewport=DESK, color_scheme="light")
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{site.url}/")
        page.get_by_role("button", name="What is the weather").click()
        page.locator(".reply[aria-busy=false] .deeds").wait_for(state="visible")
        keep(page, name)
        context.close()


def keep(page: Any, name: str) -> None:
    page.wait_for_timeout(2_500)
    page.screenshot(path=DOCS / f"{name}.png")
    image = Image.open(DOCS / f"{name}.png").convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(DOCS / f"{name}.png", optimize=True)


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        phone = {"viewport": PHONE, "is_mobile": True, "has_touch": True}
        draw(browser, "page-light", viewport=DESK, color_scheme="light")
        draw(browser, "page-dark", viewport=DESK, color_scheme="dark")
        draw(browser, "page-phone", color_scheme="light", **phone)
        draw(browser, "page-phone-map", experts=True, color_scheme="dark", **phone)
        draw_call(browser, "page-tools")
        browser.close()


if __name__ == "__main__":
    main()
