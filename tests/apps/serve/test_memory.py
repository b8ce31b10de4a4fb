"""The law of the server's memory: whatever clients do, the process stays within its budget."""

import os
import re
import subprocess
import sys
import time

import httpx
import pytest

from tests.apps.serve.siege import CHAT, Siege, asking

SERVE = "import sys; from flashmoe.apps import main; sys.exit(main())"
BODY = 1 << 20
FLAGS = ("--max-body", "1MiB", "--connections", "64", "--context", "4096", "--ram", "floor",
         "--write-timeout", "3", "--no-prefix-cache", "--no-profile")  # fmt: skip


@pytest.fixture
def url(tmp_path):
    """A server of its own: what another test's process holds already would not be seen."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", "demo", "--port", "0", *FLAGS],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert process.stderr is not None
    try:
        found = re.search(r"at (http://[^\s,]+)", process.stderr.readline())
        assert found is not None
        yield found[1]
        process.terminate()
        assert process.wait(60) == 0
        said = process.stderr.read().splitlines()
        assert said[0].startswith("the page is at") and said[-1] == "stopped"
        assert [line for line in said[1:-1] if not line.startswith("stopping")] == []
    finally:
        process.kill()
        process.stderr.close()


def figures(url):
    text = httpx.get(f"{url}/metrics", timeout=120).text
    lines = (line.rpartition(" ") for line in text.splitlines() if line[:1] not in "#")
    return {name: float(value) for name, _, value in lines}


@pytest.mark.slow
def test_the_budget_holds_under_siege_and_the_server_goes_on(url):
    siege = Siege(int(url.rpartition(":")[2]))
    budget = figures(url)['flashmoe_memory_bytes{part="budget"}']
    for _ in range(2):
        siege.long_replies(10)
        siege.tools(10)
        siege.swollen(BODY)
        siege.halves_of_bodies(6, BODY)
        siege.questions_in_a_row(12)
        siege.heads(6)
        time.sleep(3)
        siege.lift()
    answer = httpx.post(f"{url}{CHAT}", json=asking("Who is Emma?", max_tokens=8), timeout=120)
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 8
    now = figures(url)
    assert now["flashmoe_peak_resident_bytes"] <= budget
    assert now[f'flashmoe_requests_total{{endpoint="{CHAT}",status="413"}}'] > 0
    assert now[f'flashmoe_requests_total{{endpoint="{CHAT}",status="400"}}'] > 0
    for part in ("bodies", "turns", "replies"):
        assert now[f'flashmoe_request_bytes{{part="{part}"}}'] == 0
