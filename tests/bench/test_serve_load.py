"""The load test itself: a short one finds no fault, and each fault that it is for is seen."""

import asyncio
import json
import random

import httpx
import pytest
import serve_load
from serve_clients import Client, Report, shaped
from serve_load import Memory, MiB

from tests.apps.serve.conftest import brake, engine, running  # noqa: F401


def test_a_short_load_finds_no_fault(engine):  # noqa: F811
    with running(engine, body_bytes=4 << 20) as site:
        run = serve_load.load(site.url, "demo", clients=6, seconds=3, seed=1)
        report, memory = asyncio.run(run)
    assert report.faults == [] and sum(report.done.values()) >= 6
    assert report.replies == len(report.ids) > 0 and memory.peak_bytes > 0


KINDS = [kind.__name__ for kind, _ in Client(None, "demo", random.Random(0), Report()).kinds]


def played(kind, handler):
    """What the report says of one kind of client whose server is ``handler``."""
    report = Report()

    async def once():
        transport = httpx.MockTransport(handler)
        async with httpx.AsyncClient(base_url="http://server", transport=transport) as http:
            client = Client(http, "demo", random.Random(1), report)
            client.__class__ = type("One", (Client,), {"kinds": [(getattr(client, kind), 1)]})
            await client.once()

    asyncio.run(once())
    return report


def chat(content, id="1"):
    return {"id": id, "choices": [{"message": {"content": content}}]}


def streamed(*events, end=True):
    data = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return data + ("data: [DONE]\n\n" if end else "")


def delta(content, id="1"):
    return {"id": id, "choices": [{"delta": {"content": content}}]}


def word_of(request):
    return json.loads(request.content)["guided_regex"][:10]


def test_a_good_server_is_not_blamed():
    assert played("whole", lambda r: httpx.Response(200, json=chat(word_of(r)))).faults == []
    good = played("stream", lambda r: httpx.Response(200, text=streamed(delta(word_of(r)))))
    assert good.faults == [] and good.replies == 1


@pytest.mark.parametrize(
    ("kind", "answer", "words"),
    [
        ("whole", httpx.Response(200, json=chat("w000000000 of another")), "asked for w"),
        ("whole", httpx.Response(200, json=chat("")), "asked for w"),
        ("whole", httpx.Response(500, json={}), "status 500"),
        ("whole", httpx.Response(200, json={}), "KeyError"),
        ("stream", httpx.Response(200, text=streamed(delta("x"))), "asked for w"),
        ("stream", httpx.Response(200, text=streamed(delta("x"), end=False)), "has no end"),
        ("stream", httpx.Response(200, text=streamed(delta("a"), delta("b", "2"))), "one stream"),
        ("nonsense", httpx.Response(400, text="Bad Request"), "without a shape"),
        ("nonsense", httpx.Response(200, json={}), "status 200"),
        ("unknown", httpx.Response(200, json=chat("x")), "status 200"),
        ("oversized", httpx.Response(500, text="x"), "status 500"),
    ],
)
def test_a_bad_server_is(kind, answer, words):
    report = played(kind, lambda request: answer)
    assert any(words in fault for fault in report.faults), report.faults


def test_a_connection_that_breaks_is_a_lost_reply():
    def breaks(request):
        raise httpx.RemoteProtocolError("peer closed connection")

    assert "peer closed" in played("whole", breaks).faults[0]


def test_a_reply_that_comes_twice_is_seen():
    report = Report()
    report.reply("1", "w1", "w1", "w1")
    report.reply("1", "w2", "w2", "w2")
    assert len(report.faults) == 1 and "already" in report.faults[0]


def test_shapes():
    openai = {"error": {"message": "m", "type": "t", "param": None, "code": None}}
    anthropic = {"type": "error", "error": {"type": "t", "message": "m"}}
    for value, is_anthropic in ((openai, False), (anthropic, True)):
        assert shaped(json.dumps(value).encode(), anthropic=is_anthropic)
        assert not shaped(json.dumps(value).encode(), anthropic=not is_anthropic)
    assert not shaped(b"", anthropic=False) and not shaped(b"[]", anthropic=True)


def memory_of(sizes, budget=1000):
    memory = Memory()
    for at, size in enumerate(sizes):
        memory.look(
            float(at),
            {
                'flashmoe_memory_bytes{part="budget"}': budget * MiB,
                "flashmoe_peak_resident_bytes": max(sizes) * MiB,
                "flashmoe_resident_bytes": size * MiB,
            },
        )
    return memory


def faults_of(memory):
    report = Report()
    memory.check(report, 16 * MiB)
    return report.faults


def test_memory_that_grows_is_seen_and_a_warm_up_is_not():
    warm = [100 + min(at, 20) for at in range(101)]
    assert faults_of(memory_of(warm)) == []
    assert "has grown" in faults_of(memory_of([100 + at for at in range(101)]))[0]
    assert "the peak is" in faults_of(memory_of([*warm, 1001]))[0]
    assert "not seen often enough" in faults_of(memory_of([100]))[0]


def test_the_table_ends_with_a_verdict():
    report, memory = Report(), memory_of([100] * 50)
    assert serve_load.table(report, memory).endswith("verdict: passed")
    report.fault("it broke")
    assert "fault: it broke" in serve_load.table(report, memory)
    assert serve_load.to_json(report, memory)["passed"] is False
    assert "FAILED, 1 fault" in serve_load.table(report, memory)


def test_every_kind_has_a_share():
    kinds = Client(None, "demo", random.Random(0), Report()).kinds
    assert sum(share for _, share in kinds) == 100 and len(KINDS) == len(set(KINDS))
