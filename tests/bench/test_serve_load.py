"""The load test itself: short, against a server in this process."""

import asyncio

import pytest
import serve_load

from tests.apps.serve.conftest import brake, engine, running  # noqa: F401


def test_a_short_load_finds_no_fault(engine):  # noqa: F811
    with running(engine) as site:
        report = asyncio.run(serve_load.load(site.url, "demo", clients=6, seconds=3, seed=1))
    assert report.faults == [] and sum(report.done.values()) >= 6
    assert report.to_json()["resident_bytes_last"] > 0


@pytest.mark.parametrize("content", ["", "w1", "w123456789 X"])
def test_a_reply_of_another_is_seen(content):
    report = serve_load.Report()
    client = serve_load.Client(None, "demo", None, report)
    client._belongs("w123456789", content)
    assert len(report.faults) == 1


def test_an_error_without_a_shape_is_seen():
    report = serve_load.Report()
    client = serve_load.Client(None, "demo", None, report)
    assert not client._status(400, b"Bad Request", 400)
    assert not client._status(500, b'{"error": {}}', 400)
    assert len(report.faults) == 2
