"""The routing log: what is written is read back; what is malformed is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmoe.apps.routing_log import Header, RoutingWriter, read
from flashmoe.errors import InputError

HEADER = Header(layers=2, experts=8, top_k=2, record_bytes=(4096, 8192), slots=3)
GOOD = '{"tok": 0, "layers": [[1, 2], [3, 4]]}'


def one_pass(writer: RoutingWriter, *layers: list[list[int]]) -> None:
    writer.begin()
    for layer, ids in enumerate(layers):
        writer.routed(layer, np.array(ids))
        writer.ended(layer, "route")
        writer.ended(layer, "experts")


def test_what_a_run_writes_is_read_back(tmp_path):
    writer = RoutingWriter(tmp_path / "log")
    writer.start(HEADER)
    one_pass(writer, [[5, 1], [0, 7]], [[3, 2], [2, 3]])
    writer.part = "decode"
    one_pass(writer, [[4, 1]], [[6, 0]])
    writer.close()
    log = read(tmp_path / "log")
    assert log.header == HEADER
    assert log.ids.tolist() == [[[1, 5], [2, 3]], [[0, 7], [2, 3]], [[1, 4], [0, 6]]]
    assert log.passes.tolist() == [0, 0, 1]
    assert log.prompt_tokens == 2
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines[0]["flashmoe_trace"] == 1 and lines[0]["record_bytes"] == [4096, 8192]
    assert [line["tok"] for line in lines[1:]] == [0, 1, 2]
    assert [line["phase"] for line in lines[1:]] == ["prompt", "prompt", "decode"]


def test_a_pass_that_failed_leaves_no_token(tmp_path):
    writer = RoutingWriter(tmp_path / "log")
    writer.start(HEADER)
    writer.begin()
    writer.routed(0, np.array([[1, 2]]))
    writer.ended(0, "experts")
    one_pass(writer, [[1, 2]], [[3, 4]])
    writer.close()
    assert read(tmp_path / "log").ids.tolist() == [[[1, 2], [3, 4]]]


def test_nothing_is_made_before_the_start(tmp_path):
    RoutingWriter(tmp_path / "log").close()
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("where", ["none/log", "."])
def test_a_file_that_cannot_be_made_is_named(tmp_path, where):
    with pytest.raises(InputError, match=r"cannot be written.*--trace-out"):
        RoutingWriter(tmp_path / where).start(HEADER)


def test_a_full_disk_is_an_error():
    writer = RoutingWriter(Path("/dev/full"))
    writer.start(HEADER)
    with pytest.raises(InputError, match="/dev/full cannot be written: No space left"):
        writer.close()


def test_a_log_without_a_header_is_read(tmp_path):
    (tmp_path / "log").write_text(GOOD + '\n\n{"tok": 1, "layers": [[6, 0], [1, 0]]}\n')
    log = read(tmp_path / "log")
    assert log.header == Header(layers=2, experts=7, top_k=2)
    assert log.ids.tolist() == [[[1, 2], [3, 4]], [[0, 6], [0, 1]]]
    assert log.passes.tolist() == [0, 1]


@pytest.mark.parametrize(
    "lines, message",
    [
        ([], "has no tokens"),
        ([HEADER.to_json()], "has no tokens"),
        (["{"], "line 1 is not JSON"),
        (["[1]"], "line 1 is not a JSON object"),
        ([GOOD, '{"tok": 1}'], 'line 2 has no "layers"'),
        ([GOOD, '{"layers": [[1, 2]]}'], "line 2 has other layers"),
        (['{"layers": [[1, 2], [3]]}'], "same number of experts"),
        (['{"layers": [[1, -2]]}'], "not a whole number"),
        (['{"layers": [[1, true]]}'], "not a whole number"),
        (['{"layers": [[1, 1e99]]}'], "not a whole number"),
        ([f'{{"layers": [[1, {10**40}]]}}'], "not a whole number"),
        (['{"layers": [[1, 1]]}'], "one expert of a layer twice"),
        ([GOOD.replace("}", ', "pass": 3}'), GOOD.replace("}", ', "pass": 2}')], "rise"),
        (['{"flashmoe_trace": 2}', GOOD], "version 2 is not 1"),
        (['{"flashmoe_trace": 1}', GOOD], "positive whole numbers"),
        ([HEADER.to_json().replace("[4096, 8192]", "[4096]"), GOOD], "one size a layer"),
        ([HEADER.to_json().replace("[4096, 8192]", '[4096, "x"]'), GOOD], "positive whole"),
        ([HEADER.to_json().replace('"slots": 3', '"slots": 0'), GOOD], "positive whole"),
        ([HEADER.to_json().replace('"experts": 8', '"experts": 4'), GOOD], "its header says"),
        ([HEADER.to_json().replace('"top_k": 2', '"top_k": 3'), GOOD], "its header says"),
    ],
)
def test_malformed_logs_are_refused(tmp_path, lines, message):
    (tmp_path / "log").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message) as refusal:
        read(tmp_path / "log")
    assert str(tmp_path / "log") in str(refusal.value)


def test_unreadable_logs_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "log").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "log")
    (tmp_path / "deep").write_text("[" * 100_000)
    with pytest.raises(InputError, match="not JSON"):
        read(tmp_path / "deep")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


# A busy machine takes long over inputs and over files: that is no fault of the reader.
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.dictionaries(
        st.sampled_from(["layers", "experts", "top_k", "record_bytes", "slots", "pass", "phase"]),
        json_values,
    ),
    st.booleans(),
)
def test_hostile_lines_are_refused_or_read(tmp_path, entry, header):
    first = {"flashmoe_trace": 1, **entry} if header else entry
    (tmp_path / "log").write_text(json.dumps(first) + "\n" + GOOD)
    try:
        log = read(tmp_path / "log")
    except InputError:
        return
    assert log.ids.shape[1:] == (log.header.layers, log.header.top_k)
