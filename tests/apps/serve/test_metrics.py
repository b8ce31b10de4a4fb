"""The figures, read as Prometheus reads them."""

import time
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flashmoe import Budget, Engine, Runtime, __version__
from flashmoe.apps.serve.metrics import CONTENT_TYPE, Metrics
from flashmoe.apps.serve.room import Room
from flashmoe.kernels import on_device
from flashmoe.turn import Usage
from tests.kernels.cuda.emulated import EmulatedDevice


@pytest.fixture
def made(engine):
    rooms = {"bodies": Room(100)}
    rooms["bodies"].take(60)
    return Metrics(engine, 'a "model"\\of\nmine', lambda: 3, lambda: 1, rooms)


def read(metrics):
    return {
        family.name: family for family in text_string_to_metric_families(metrics.text().decode())
    }


def value(metrics, name, **labels):
    for family in read(metrics).values():
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(f"there is no {name} {labels}")


def test_every_figure_has_help_and_a_type_and_a_prefix(made):
    families = read(made)
    for name, family in families.items():
        assert family.documentation and family.type in ("counter", "gauge", "histogram"), name
        assert name.startswith(("flashmoe_", "process_")), name
    assert "text/plain" in CONTENT_TYPE


def test_units_are_in_the_names(made):
    for name, family in read(made).items():
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples), name
        if "bytes" in name or "seconds" in name:
            base = name.removesuffix("_total")
            assert base.endswith(("_bytes", "_seconds")), name
        assert not name.endswith(("_ms", "_kb", "_mib")), name


def test_counters_only_grow_and_count_what_they_say(made):
    made.request("/v1/messages", 200)
    made.request("/v1/messages", 200)
    made.request("/v1/messages", 429)
    made.cancelled()
    made.reply(Usage(10, 4, 5, 1))
    made.reply(Usage(1, 0, 2, 0))
    asked = {"endpoint": "/v1/messages"}
    assert value(made, "flashmoe_requests_total", status="200", **asked) == 2
    assert value(made, "flashmoe_requests_total", status="429", **asked) == 1
    assert value(made, "flashmoe_cancelled_total") == 1
    for kind, tokens in (("prompt", 11), ("cached", 4), ("generated", 7)):
        assert value(made, "flashmoe_tokens_total", kind=kind) == tokens


def test_counters_are_there_before_anything_has_happened(made):
    for kind in ("prompt", "cached", "generated"):
        assert value(made, "flashmoe_tokens_total", kind=kind) == 0
    assert value(made, "flashmoe_cancelled_total") == 0
    assert value(made, "flashmoe_time_to_first_token_seconds_count") == 0


def test_the_first_token_is_timed_from_the_arrival_and_others_by_themselves(made):
    step = SimpleNamespace(ms_total=20.0)
    made.step(step, first=time.monotonic() - 3)
    made.step(step, first=None)
    assert value(made, "flashmoe_time_to_first_token_seconds_count") == 1
    assert 3 <= value(made, "flashmoe_time_to_first_token_seconds_sum") < 4
    assert value(made, "flashmoe_token_seconds_sum") == pytest.approx(0.02)
    buckets = [
        sample.value
        for sample in read(made)["flashmoe_time_to_first_token_seconds"].samples
        if sample.name.endswith("_bucket")
    ]
    assert buckets == sorted(buckets) and buckets[-1] == 1


def test_the_engines_counters_are_those_of_the_engine(made, engine):
    before = value(made, "flashmoe_hits_total")
    prompt = engine.tokenizer.encode("Emma was")
    list(engine.session().generate(prompt, engine.sampling(max_tokens=3)))
    counters = engine.counters
    assert value(made, "flashmoe_hits_total") == counters.hits > before
    assert value(made, "flashmoe_read_bytes_total") == counters.bytes_read
    assert value(made, "flashmoe_read_wait_seconds_total") == pytest.approx(counters.wait_ms / 1e3)
    assert 0 < value(made, "flashmoe_hit_rate") <= 1


def test_what_requests_hold_and_may_hold(made):
    assert value(made, "flashmoe_request_bytes", part="bodies") == 60
    assert value(made, "flashmoe_request_limit_bytes", part="bodies") == 100
    assert value(made, "flashmoe_queue_length") == 3 and value(made, "flashmoe_busy") == 1


def test_labels_hold_whatever_a_model_is_called(made):
    (sample,) = read(made)["flashmoe_build_info"].samples
    assert sample.labels == {"version": __version__, "model": 'a "model"\\of\nmine'}
    assert sample.value == 1


def test_memory_by_part_is_the_plan(made, engine):
    plan = engine.plan
    assert value(made, "flashmoe_memory_bytes", part="requests") == plan.host_bytes
    assert value(made, "flashmoe_memory_bytes", part="trunk") == plan.trunk_bytes
    assert value(made, "flashmoe_memory_bytes", part="budget") == plan.budget_bytes
    peak = value(made, "flashmoe_peak_resident_bytes")
    assert peak >= value(made, "flashmoe_resident_bytes") > 1 << 20


def test_the_tier_of_vram_is_told_where_there_is_one(made):
    assert not [name for name in read(made) if "vram" in name or "cop" in name]
    kernels, runtime = on_device(EmulatedDevice()), Runtime(profile=False, threads=1)
    budget = Budget(context_tokens=64, vram_bytes=78 << 20)
    with Engine.open("demo", kernels=kernels, budget=budget, runtime=runtime) as engine:
        counters, room = engine.streamer.counters, engine.vram
        counters.vram_hits, counters.vram_misses = 30, 10
        counters.copied_bytes, counters.copy_wait_ms = 5000, 250.0
        made = Metrics(engine, "demo", lambda: 0, lambda: 0, {})
        test_every_figure_has_help_and_a_type_and_a_prefix(made)
        test_units_are_in_the_names(made)
        assert value(made, "flashmoe_vram_hits_total") == 30
        assert value(made, "flashmoe_vram_misses_total") == 10
        assert value(made, "flashmoe_copied_bytes_total") == 5000
        assert value(made, "flashmoe_copy_wait_seconds_total") == 0.25
        assert value(made, "flashmoe_vram_slots") == room.slots
        parts = read(made)["flashmoe_vram_bytes"].samples
        assert {part.labels["part"] for part in parts} == {
            "trunk", "timelines", "scratch", "slots",
        }  # fmt: skip
        assert sum(part.value for part in parts) == room.planned_bytes


def test_two_servers_count_apart(engine):
    one, other = (Metrics(engine, "demo", lambda: 0, lambda: 0, {}) for _ in range(2))
    one.cancelled()
    assert value(other, "flashmoe_cancelled_total") == 0
