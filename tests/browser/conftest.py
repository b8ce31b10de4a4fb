"""A browser for the page: Debian's Chromium, driven by Playwright.

Both are needed; where one is missing these tests are skipped, and in CI they fail. Whatever is
done, a visit may neither log an error nor ask any other host for anything.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.apps.serve.page_server import MadeUpView, PageServer, Script, page_server

CHROMIUM = Path("/usr/bin/chromium")
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PATIENCE_MS = 30_000


def absent(what: str) -> NoReturn:
    """Skip, loudly; in CI this is a failure."""
    reason = f"the page is not tested in a browser: {what}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser. A module's own, since Playwright's loop would be in the way of others."""
    if importlib.util.find_spec("playwright") is None:
        absent("Playwright is missing; pip install 'playwright>=1.60'")
    if not CHROMIUM.exists():
        absent(f"{CHROMIUM} is missing; apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that is open, and all that went wrong there."""

    page: Any
    server: PageServer
    problems: list[str] = field(default_factory=list)

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The bodies of the requests for a reply, so far."""
        return self.server.script.asked

    def say(self, text: str) -> None:
        self.page.fill("#ask", text)
        self.page.press("#ask", "Enter")

    def hear(self, replies: int = 1) -> Any:
        """Wait until so many replies are complete; the last one."""
        done = self.page.locator(".reply[aria-busy=false]")
        done.nth(replies - 1).locator(".deeds").wait_for(state="visible")
        return done.nth(replies - 1)

    def until(self, expression: str) -> None:
        """Wait until something is so. (Playwright's own way is eval, which the page forbids.)"""
        end = time.monotonic() + PATIENCE_MS / 1e3
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"it did not come to that: {expression}"
            self.page.wait_for_timeout(20)

    def forgive(self, word: str) -> None:
        """The browser's own word on a response that was to be refused."""
        rest = [problem for problem in self.problems if word not in problem]
        assert len(rest) < len(self.problems), f"nothing went wrong with {word}"
        self.problems[:] = rest


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Visit]]:
    """Opens the page of a server of its own; at the end nothing may have gone wrong."""
    visits: list[Visit] = []
    with ExitStack() as stack:

        def open_(script: Script | None = None, *, size: Any = DESK, **options: Any) -> Visit:
            script = script or Script(MadeUpView(12, 48, 4), pause_s=0.001)
            server = stack.enter_context(page_server(script))
            context = chromium.new_context(viewport=size, reduced_motion="reduce", **options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(PATIENCE_MS)
            visit = Visit(page, server)
            visits.append(visit)
            page.on("pageerror", lambda error: visit.problems.append(f"error: {error}"))
            page.on("console", lambda line: _note(visit, line))
            page.on("request", lambda request: _elsewhere(visit, request.url))
            page.goto(server.url)
            visit.until("document.querySelector('#title').textContent !== 'flashmoe'")
            return visit

        yield open_
        for visit in visits:
            assert not visit.problems


def _note(visit: Visit, line: Any) -> None:
    if line.type in ("error", "warning"):
        visit.problems.append(f"{line.type}: {line.text}")


def _elsewhere(visit: Visit, url: str) -> None:
    if not url.startswith((visit.server.url, "data:")):
        visit.problems.append(f"a request to {url}")
