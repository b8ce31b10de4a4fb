"""``eval`` from the command line: figures as tables and JSON, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from flashmoe.apps.eval import keys
from tests.apps.conftest import Command

TEXT = "Is it likely that Emma was sitting\nthere with her father all evening? " * 4
HELD_OUT = (
    Path(__file__).parents[3] / "models" / "austen-moe" / "recipe" / "heldout_tool_requests.json"
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_a_text_as_json(command: Command, store, text: Path):
    (Path(store) / "usage.json").unlink(missing_ok=True)  # of other commands
    result = command(
        *("eval", store, "--text", text, "--context", 64, "--stride", 32, "--ram", "floor"),
        "--json",
    )
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert list(found) == list(keys.WHOLE) and found["store"] == str(store)
    assert found["against"] is None and found["tools"] is None
    figures = found["text"]
    assert list(figures) == list(keys.TEXT)
    assert (figures["context"], figures["stride"]) == (64, 32)
    assert figures["scored_tokens"] == figures["tokens"] - 1 == len(TEXT) - 1
    assert figures["perplexity"] == pytest.approx(math.exp(figures["nats_per_token"]))
    assert found["peak_rss_bytes"] > 0 and found["bits"] == 4 and found["kv"] == "f16"
    assert not (Path(store) / "usage.json").exists(), "it says nothing of a user's prompts"


def test_two_stores_as_json_and_as_a_table(command: Command, store, text: Path):
    common = ("eval", store, "--text", text, "--against", store, "--experts-per-token", 1)
    result = command(*common, "--json")
    assert result.code == 0, result.err
    assert result.err.count("lossy") == 1, "the other store keeps its own experts"
    against = json.loads(result.out)["against"]
    assert list(against) == list(keys.AGAINST)
    assert 0 < against["kl_median"] <= against["kl_p99"] <= against["kl_max"]
    assert 0 < against["same_top_1"] <= 1
    shown = command(*common).out
    for part in ("perplexity", "bits a byte", "KL, mean", "same likeliest", "1 experts a token"):
        assert part in shown
    same = json.loads(command(*common[:-2], "--json").out)["against"]
    assert same["kl_max"] == 0 and same["same_top_1"] == 1 and same["perplexity_difference"] == 0


def test_a_budget_bounds_both_stores(command: Command, store, text: Path):
    result = command("eval", store, "--text", text, "--against", store, "--ram", "1MiB")
    assert result.code == 1 and "floor" in result.last


def test_one_window_is_no_windows(command: Command, store, text: Path):
    for count, said in ((1, "in 1 window of 50,"), (2, "in 2 windows of 50,")):
        result = command("eval", store, "--text", text, "--context", 50, "--windows", count)
        assert said in " ".join(result.out.split())


def test_only_the_first_windows(command: Command, store, text: Path):
    result = command("eval", store, "--text", text, "--context", 50, "--windows", 2, "--json")
    figures = json.loads(result.out)["text"]
    assert (figures["windows"], figures["scored_tokens"]) == (2, 100)


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ((), "nothing to evaluate: give --text, --tools, or both"),
        (("--stride", 8, "--tools", "x"), "--stride is about a text"),
        (("--against", "demo", "--tools", "x"), "--against is about a text"),
        (("--windows", 2, "--tools", "x"), "--windows is about a text"),
        (("--text", "TEXT", "--temperature", 1), "--temperature is about tool requests"),
        (("--text", "TEXT", "--max-tokens", 5), "--max-tokens is about tool requests"),
        (("--text", "TEXT", "--no-think"), "--think is about tool requests"),
        (("--text", "TEXT", "--context", 64, "--stride", 65), "--stride is 65"),
        (("--text", "missing"), "missing cannot be read"),
        (("--text", "TEXT", "--against", "demo"), "another vocabulary"),
        (("--tools", "TEXT"), "line 1 is not JSON"),
        (("--tools", "x", "--max-tokens", 0), "max_tokens is 0"),
    ],
)
def test_refusals(command: Command, store, text: Path, flags, fault):
    given = [text if flag == "TEXT" else flag for flag in flags]
    result = command("eval", store, *given)
    assert result.code == 2 and fault in result.last and not result.out


def test_a_text_that_is_too_short(command: Command, store, tmp_path: Path):
    (tmp_path / "short").write_text("a")
    result = command("eval", store, "--text", tmp_path / "short")
    assert result.code == 2 and "the text has 1 tokens" in result.last


def few(tmp_path: Path, count: int) -> Path:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(json.loads(HELD_OUT.read_text())[:count]))
    return path


def test_tool_requests_of_the_demo(command: Command, tmp_path: Path):
    result = command("eval", "demo", "--tools", few(tmp_path, 3), "--max-tokens", 80, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)["tools"]
    assert list(found) == list(keys.TOOLS)
    assert (found["cases"], found["expected"], found["temperature"]) == (3, 3, 0)
    for side in ("unconstrained", "constrained"):
        assert list(found[side]) == list(keys.SIDE)
    assert found["constrained"]["valid"] == found["constrained"]["well_formed"] == 3
    assert found["constrained"]["right"] >= found["unconstrained"]["right"]


def test_a_prompt_and_its_messages_are_the_same_request(command: Command, tmp_path: Path):
    case = json.loads(HELD_OUT.read_text())[0]
    spoken = {key: case[key] for key in ("tools", "name", "arguments")}
    spoken["messages"] = [{"role": "user", "content": case["user"]}]
    path = tmp_path / "cases.jsonl"
    path.write_text(f"{json.dumps(case)}\n{json.dumps(spoken)}\n")
    command_line = ("eval", "demo", "--tools", path, "--max-tokens", 8)  # cut: it has a reply
    found = json.loads(command(*command_line, "--json").out)["tools"]["unconstrained"]
    one, other = found["faults"]
    assert found["cut"] == 2 and one["reply"] == other["reply"]
    assert [fault["case"].split(", ")[1] for fault in (one, other)] == ["line 1", "line 2"]
    shown = command(*command_line).out
    for part in ("2 tool requests, greedy", "well-formed, of 2", "unconstrained", "0 (0.0%)"):
        assert part in shown


def test_a_request_that_the_store_cannot_be_asked_is_named(command: Command, tmp_path: Path):
    case = json.loads(HELD_OUT.read_text())[0]
    del case["prompt"]
    case["messages"] = [{"role": "nobody", "content": "-"}]
    (tmp_path / "cases").write_text(json.dumps(case))
    result = command("eval", "demo", "--tools", tmp_path / "cases")
    assert result.code == 2 and "line 1: " in result.last
