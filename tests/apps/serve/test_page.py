"""The page's files: all that they name is there, and nothing of them leads elsewhere."""

from __future__ import annotations

import re

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from flashmoe.apps.serve.page import POLICY, TYPES, WEB, routes

FILES = sorted(path for path in WEB.iterdir())


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=list(routes())))


def test_the_page_is_at_the_root_and_says_what_a_browser_may_do(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in POLICY and "default-src 'none'" in POLICY


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_is_served_as_what_it_is_and_asked_for_once(client: TestClient, path) -> None:
    assert path.suffix in TYPES, "a file that nobody serves"
    answer = client.get(f"/web/{path.name}")
    assert answer.content == path.read_bytes()
    assert answer.headers["content-type"] == TYPES[path.suffix]
    again = client.get(f"/web/{path.name}", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304 and not again.content
    changed = client.get(f"/web/{path.name}", headers={"if-none-match": '"another"'})
    assert changed.status_code == 200


@pytest.mark.parametrize(
    "path", ["/web/", "/web/none.js", "/web/..%2fpage.py", "/web/../page.py", "/web/%2e%2e/page.py"]
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_all_that_is_named_is_there() -> None:
    names = {path.name for path in FILES}
    index = (WEB / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="web/([^"]+)"', index)) <= names
    for path in FILES:
        if path.suffix == ".js":
            assert set(re.findall(r'from "\./([^"]+)"', path.read_text())) <= names


def test_nothing_is_inline_and_no_text_becomes_markup() -> None:
    index = (WEB / "index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", index)
    for path in FILES:
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text)
        assert not re.search(r"\beval\(|new Function|javascript:", text), path.name
        hosts = set(re.findall(r"https?://([\w.-]+)", text))
        assert hosts <= {"www.w3.org"}, f"{path.name} names {hosts}"  # of the SVG namespace


def test_files_own_one_thing() -> None:
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 400, path.name
