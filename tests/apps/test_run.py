"""``run``: standard output is the reply and nothing else, and every flag does what it says."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer.main
import xxhash

from flashmoe.apps import cli, routing, routing_log
from flashmoe.apps.footer import KEYS
from flashmoe.engine import Engine
from flashmoe.errors import SessionError
from flashmoe.options import PrefixCache, Sampling
from flashmoe.session import Session
from flashmoe.step import Step
from flashmoe.store.reader import Store
from flashmoe.stream import memory
from flashmoe.text.template import Segment
from tests.apps.conftest import ADDED, Command, Result

SHORT = ("--max-tokens", 12)


@pytest.fixture
def engine(store: Path) -> Iterator[Engine]:
    with Engine.open(store) as engine:
        yield engine


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ``run`` gave to Engine.open and to Session.generate."""
    seen: dict[str, Any] = {}
    real_open, real_generate = Engine.open, Session.generate

    def spy_open(path: str, **options: Any) -> Engine:
        seen.update(options)
        return real_open(path, **options)

    def spy_generate(
        self: Session, ids: list[int], sampling: Sampling, **more: Any
    ) -> Iterator[Step]:
        seen.update(ids=list(ids), sampling=sampling, **more)
        return real_generate(self, ids, sampling, **more)

    monkeypatch.setattr(Engine, "open", spy_open)
    monkeypatch.setattr(Session, "generate", spy_generate)
    return seen


def chat(engine: Engine, text: str, **options: Any) -> list[int]:
    messages = [{"role": "user", "content": text}]
    if system := options.pop("system", None):
        messages.insert(0, {"role": "system", "content": system})
    return engine.tokenizer.encode_segments(engine.template.render(messages, **options))


def reply(engine: Engine, ids: list[int], **sampling: Any) -> str:
    sampling = {"max_tokens": 12, **sampling}
    steps = engine.session().generate(ids, engine.sampling(**sampling))
    return "".join(step.text for step in steps)


def stats(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.last)
    return found


# --- standard output and standard error


def test_standard_output_is_the_reply_alone(command: Command, store, engine):
    result = command("run", store, "Hello", *SHORT)
    assert result.code == 0
    assert result.out == reply(engine, chat(engine, "Hello"))
    assert len(result.out) >= 12


def test_the_last_line_has_the_figures(command: Command, store):
    result = command("run", store, "Hello", *SHORT)
    blank, line = result.err.splitlines()
    assert blank == "", "the reply did not end with a line"
    for part in (
        "26 prompt tokens, 12 tokens, ",
        " tok/s, TTFT ",
        " hits, ",
        " misses (",
        " GB read a token, peak memory ",
    ):
        assert part in line


def test_statistics_as_json(command: Command, store):
    found = stats(command("run", store, "Hello", *SHORT, "--no-profile", "--stats", "json"))
    assert list(found) == list(KEYS)
    assert (found["prompt_tokens"], found["tokens"]) == (26, 12)
    assert found["finish_reason"] == "length"
    assert found["experts_per_token"] == 3
    assert found["slots"] == found["planned_slots"] == 32
    assert found["hit_rate"] == found["hits"] / (found["hits"] + found["misses"])
    assert found["bytes_read"] == found["misses"] * 4096
    assert found["ttft_ms"] > 0 and found["load_ms"] > 0
    assert found["peak_bytes"] > 20e6


def test_markup_that_the_model_writes_is_visible(command: Command, store, engine, monkeypatch):
    tool_call = 96 + ADDED.index("<tool_call>")
    steps = [tool_call, 40, 96 + ADDED.index("<|im_end|>")]

    class Scripted:
        def __init__(self) -> None:
            self.rest = iter(steps)

        def __call__(self, logits: Any) -> Any:
            from flashmoe.sampler import Choice

            return Choice(next(self.rest), 0.0, ())

    monkeypatch.setattr(Engine, "sampler", lambda *_: Scripted())
    result = command("run", store, "Hello", "--stats", "json")
    assert result.out == "<tool_call>G"
    assert stats(result)["finish_reason"] == "stop"


class Window(io.StringIO):
    """A terminal that keeps what it gets."""

    def isatty(self) -> bool:
        return True


def test_a_reply_cannot_drive_a_terminal(command: Command, store, monkeypatch):
    hostile = "\x1b]52;c;cm0=\x07\x9b2J"
    real = Session.generate

    def generate(self: Session, *given: Any, **more: Any) -> Iterator[Step]:
        steps = real(self, *given, **more)
        yield replace(next(steps), text=hostile)
        yield from steps

    monkeypatch.setattr(Session, "generate", generate)
    piped = command("run", store, "Hello", *SHORT).out
    assert piped.startswith(hostile), "a pipe gets it as it is"
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", window := Window())
        cli.main(["run", str(store), "Hello", *map(str, SHORT)])
    shown = window.getvalue()
    assert shown == piped.replace(hostile, "␛]52;c;cm0=␇\\u009b2J") + "\n"


def test_a_read_error_ends_the_line_and_is_one_line(command: Command, store, monkeypatch):
    from flashmoe.errors import ReadError

    real = Session.generate

    def fail(self: Session, ids: list[int], sampling: Sampling, **more: Any) -> Iterator[Step]:
        steps = real(self, ids, sampling, **more)
        yield next(steps)
        raise ReadError("layer-000.safetensors: expert 3 is damaged")

    monkeypatch.setattr(Session, "generate", fail)
    result = command("run", store, "Hello", *SHORT)
    assert result.code == 1 and len(result.out) == 1
    assert result.err == "\nerror: layer-000.safetensors: expert 3 is damaged\n"


def test_interrupt_ends_the_reply_with_its_footer(command: Command, store, tmp_path, monkeypatch):
    real = Session.generate

    def interrupted(
        self: Session, ids: list[int], sampling: Sampling, **more: Any
    ) -> Iterator[Step]:
        for number, step in enumerate(real(self, ids, sampling, **more)):
            if number == 5:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(Session, "generate", interrupted)
    kept = tmp_path / "kept"
    result = command("run", store, "Hello", "--stats", "json", "--save", kept)
    assert result.code == 130 and len(result.out) >= 5
    assert (stats(result)["finish_reason"], stats(result)["tokens"]) == ("interrupt", 5)
    assert kept.exists(), "the conversation up to here is kept"


def test_the_peak_is_read_after_saving(command: Command, store, tmp_path, monkeypatch):
    done: list[str] = []
    real = Session.save

    def save(self: Session, path: Path) -> None:
        real(self, path)
        done.append("saved")

    def peak() -> int:
        return 7 if done else 5

    monkeypatch.setattr(Session, "save", save)
    monkeypatch.setattr(memory, "peak_resident_bytes", peak)
    kept = tmp_path / "kept"
    assert stats(command("run", store, "Hello", *SHORT, "--stats", "json"))["peak_bytes"] == 5
    result = command("run", store, "Hello", *SHORT, "--stats", "json", "--save", kept)
    assert stats(result)["peak_bytes"] == 7


def test_a_conversation_that_cannot_be_kept_still_has_its_footer(
    command: Command, store, tmp_path, monkeypatch
):
    def save(self: Session, path: Path) -> None:
        raise SessionError(f"{path} cannot be written: no space")

    monkeypatch.setattr(Session, "save", save)
    result = command("run", store, "Hello", *SHORT, "--save", tmp_path / "kept")
    assert result.code == 1 and result.out
    footer, error = result.err.splitlines()[-2:]
    assert "peak memory" in footer and error.startswith("error: ") and "no space" in error


# --- what is said


def test_raw_continues_the_prompt(command: Command, store, engine):
    result = command("run", store, "Hello", "--raw", *SHORT)
    assert result.out == reply(engine, engine.tokenizer.encode("Hello"))


def test_whether_it_reasons_is_for_the_template_to_say(command: Command, store, engine, opened):
    command("run", store, "Hello", *SHORT)
    assert opened["ids"] == chat(engine, "Hello")
    command("run", store, "Hello", "--no-think", *SHORT)
    assert opened["ids"] == chat(engine, "Hello", enable_thinking=False)
    command("run", store, "Hello", "--think", *SHORT)
    assert opened["ids"] == chat(engine, "Hello", enable_thinking=True)


DEMO = ("demo", "--ram", "floor", "--io-threads", 2)
"""Whose tokenizer has every byte, so that calls can be bound."""
CLOCK = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]


def test_system_and_tools_reach_the_template(command: Command, opened, tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(CLOCK))
    given = ("--system", "Be brief", "--tools", tmp_path / "tools.json")
    assert command("run", *DEMO, "Hi", *given, *SHORT).code == 0
    with Engine.open("demo") as engine:
        assert opened["ids"] == chat(engine, "Hi", system="Be brief", tools=CLOCK)


@pytest.mark.parametrize(
    "content", ["{", '{"type": "function"}', "[1]", '[{"type": "function"}]', "[" * 100_000]
)
def test_tools_that_are_none_are_refused(command: Command, store, tmp_path, content):
    (tmp_path / "tools.json").write_text(content)
    result = command("run", store, "Hi", "--tools", tmp_path / "tools.json")
    assert result.code == 2 and "tools.json" in result.err and result.err.count("\n") == 1


@contextmanager
def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        yield


@pytest.mark.parametrize("argument", [[], ["-"]])
def test_the_prompt_may_be_piped(command: Command, store, engine, opened, monkeypatch, argument):
    with piped(monkeypatch, b"two\nlines\n"):
        command("run", store, *argument, "--raw", *SHORT)
    assert opened["ids"] == engine.tokenizer.encode("two\nlines")


def test_a_pipe_that_is_empty_or_not_text_is_refused(command: Command, store, monkeypatch):
    with piped(monkeypatch, b"\n"):
        result = command("run", store)
        assert result.code == 2 and "the prompt is empty" in result.err
    with piped(monkeypatch, b"\xff\xfe"):
        result = command("run", store)
        assert result.code == 2 and "standard input is not UTF-8" in result.err


def test_user_text_cannot_write_structure(command: Command, store, engine, opened):
    command("run", store, "<|im_end|>", *SHORT)
    assert opened["ids"].count(96 + ADDED.index("<|im_end|>")) == 1
    assert opened["ids"] == chat(engine, "<|im_end|>")


# --- sampling


@pytest.mark.parametrize(
    "flag, value, field, wanted",
    [
        ("--max-tokens", 3, "max_tokens", 3),
        ("--temperature", 0.7, "temperature", 0.7),
        ("--top-p", 0.5, "top_p", 0.5),
        ("--top-k", 4, "top_k", 4),
        ("--min-p", 0.1, "min_p", 0.1),
        ("--repetition-penalty", 1.5, "repetition_penalty", 1.5),
        ("--presence-penalty", 0.5, "presence_penalty", 0.5),
        ("--frequency-penalty", 0.25, "frequency_penalty", 0.25),
        ("--seed", 7, "seed", 7),
        ("--stop", "abc", "stop", ("abc",)),
        ("--logprobs", 2, "logprobs", 2),
    ],
)
def test_sampling_flags_reach_the_sampler(command, store, opened, flag, value, field, wanted):
    assert command("run", store, "Hello", *SHORT, flag, value).code == 0
    assert getattr(opened["sampling"], field) == wanted


def test_the_rest_of_the_sampling_is_the_store_s_own(command: Command, store, engine, opened):
    command("run", store, "Hello")
    assert opened["sampling"] == engine.sampling(max_tokens=512)
    assert opened["sampling"].temperature == 0, "its generation_config says do_sample: false"


def test_stop_strings_add_up_and_are_not_printed(command: Command, store, engine):
    whole = reply(engine, chat(engine, "Hello"))
    result = command("run", store, "Hello", *SHORT, "--stop", "no such", "--stop", whole[5:7])
    assert result.out == whole[: whole.index(whole[5:7])]


def test_log_probabilities_are_reported_aside(command: Command, store, engine):
    plain = command("run", store, "Hello", *SHORT)
    result = command("run", store, "Hello", "--max-tokens", 2, "--logprobs", 2)
    assert result.out == plain.out[:2]
    first = result.err.splitlines()[1]
    assert first.startswith(repr(result.out[0]) + " -")
    assert len(first.split("  ")) == 3, "the token and two alternatives"
    found = stats(
        command("run", store, "Hello", "--max-tokens", 2, "--logprobs", 2, "--stats", "json")
    )
    assert [entry["token"] for entry in found["logprobs"]] == list(result.out)
    assert [len(entry["top"]) for entry in found["logprobs"]] == [2, 2]
    assert found["logprobs"][0]["top"][0]["logprob"] == found["logprobs"][0]["logprob"]


def test_fewer_experts_are_announced_as_lossy(command: Command, store):
    own = command("run", store, "Hello", *SHORT, "--experts-per-token", 3)
    assert "lossy" not in own.err
    result = command("run", store, "Hello", *SHORT, "--experts-per-token", 1, "--stats", "json")
    assert result.err.startswith(
        "lossy: answers differ from the published model: 1 of 3 experts a token\n"
    )
    assert result.out != own.out and stats(result)["experts_per_token"] == 1
    refused = command("run", store, "Hello", "--experts-per-token", 9)
    assert refused.code == 2 and refused.err.count("\n") == 1 and "8 experts" in refused.err


# --- memory


def test_ram_bounds_the_budget(command: Command, store, opened):
    result = command("run", store, "Hello", *SHORT, "--ram", "8GiB", "--stats", "json")
    assert opened["budget"].ram_bytes == 8 << 30
    usable = json.loads(command("plan", store, "--json").out)["usable_bytes"]
    assert stats(result)["budget_bytes"] == pytest.approx(min(8 << 30, usable), rel=0.1)
    result = command("run", store, "Hello", "--ram", "1MiB")
    assert result.code == 1 and "1.00 MiB (--ram) is below the floor of " in result.err


@pytest.mark.parametrize("extra", [(), ("--experts-per-token", 2)])
def test_ram_floor_is_the_least_number_of_slots(command: Command, store, engine, extra):
    result = command("run", store, "Hello", *SHORT, "--ram", "floor", "--stats", "json", *extra)
    assert result.code == 0 and stats(result)["slots"] == (2 if extra else 3)
    if not extra:
        assert result.out == reply(engine, chat(engine, "Hello")), "slower, never different"
    clash = command("run", store, "Hello", "--ram", "floor", "--slots", 4)
    assert clash.code == 2 and "leave out --slots" in clash.err


def test_ram_recommended_is_the_default(command: Command, store, opened):
    command("run", store, "Hello", *SHORT)
    default = opened["budget"]
    command("run", store, "Hello", *SHORT, "--ram", "recommended")
    assert opened["budget"] == default and default.ram_bytes is None


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_rougher_keys_and_values_are_announced_as_lossy(command: Command, store, kv):
    result = command("run", store, "Hello", *SHORT, "--kv", kv)
    assert result.code == 0 and result.err.startswith("lossy: keys and values are rounded")
    for other in ("f16", "f32"):
        assert "lossy" not in command("run", store, "Hello", *SHORT, "--kv", other).err
    assert command("run", store, "Hello", *SHORT, "--kv", "f8").code == 2


def test_slots_and_context(command: Command, store, opened):
    result = command("run", store, "Hello", *SHORT, "--slots", 5, "--stats", "json")
    assert stats(result)["slots"] == 5
    result = command("run", store, "Hello", "--context", 31, "--stats", "json")
    assert opened["budget"].context_tokens == 31
    assert 26 + stats(result)["tokens"] <= 32 and stats(result)["finish_reason"] == "length"
    refused = command("run", store, "Hello" * 10, "--context", 31)
    assert refused.code == 2 and refused.err.count("\n") == 1


def test_a_prefix_cache_is_used_and_reported(command: Command, store, tmp_path, opened, engine):
    cache, system = tmp_path / "cache", "Be brief. " * 12
    talk = ("run", store, *SHORT, "--system", system, "--prefix-cache", cache)
    first = command(*talk, "Hello")
    assert " KiB written to the prefix cache" in first.err and "from the prefix" not in first.err
    shared, other = (chat(engine, text, system=system) for text in ("Hello", "Bye"))
    count = next(at for at, (one, two) in enumerate(zip(shared, other, strict=False)) if one != two)
    start = 96 + ADDED.index("<|im_start|>")
    fixed = shared[: opened["marks"][0]]
    assert len(fixed) > 128 and fixed[-1] == start and other[: len(fixed)] == fixed
    second = command(*talk, "Hello")
    assert second.out == first.out
    assert (
        f"{len(shared)} of {len(shared)} prompt tokens from the prefix cache, 12 tok" in second.err
    )
    found = stats(command(*talk, "Bye", "--stats", "json"))
    assert found["cached_tokens"] == count // 64 * 64
    assert found["prefix_bytes_written"] > 0
    assert (
        stats(command("run", store, "Hi", *SHORT, "--stats", "json"))["prefix_bytes_written"]
        is None
    )


def test_the_size_of_a_prefix_cache(command: Command, store, tmp_path, opened):
    limits = ("--prefix-cache", tmp_path, "--prefix-cache-size")
    command("run", store, "Hello" * 20, *SHORT, *limits, "1KiB")
    assert opened["prefix_cache"] == PrefixCache(tmp_path, 1024)
    assert not list(tmp_path.rglob("*.prefix"))
    assert command("run", store, "Hello", *SHORT, *limits, "much").code == 2
    assert (
        command("run", store, "Hello", *SHORT, "--prefix-cache", store / "manifest.json").code == 2
    )
    planned = command("plan", store, "--prefix-cache", tmp_path)
    assert "the prefix cache" in planned.out
    assert "the prefix cache" not in command("plan", store).out


# --- how the work is done


@pytest.mark.parametrize(
    "arguments, field, wanted",
    [
        (("--threads", 1), "threads", 1),
        (("--chunk-tokens", 5), "chunk_tokens", 5),
        (("--io-threads", 2), "io_threads", 2),
        (("--hints",), "hints", True),
        (("--no-hints",), "hints", False),
        (("--io", "direct"), "io", "direct"),
        (("--io", "buffered"), "io", "buffered"),
        (("--io", "os"), "io", "os"),
        (("--profile",), "profile", True),
        (("--no-profile",), "profile", False),
    ],
)
def test_runtime_flags_never_change_the_reply(command, store, opened, arguments, field, wanted):
    plain = command("run", store, "Hello", *SHORT).out
    assert command("run", store, "Hello", *SHORT, *arguments).out == plain
    assert getattr(opened["runtime"], field) == wanted


def test_measurements_of_the_disk_are_kept_where_the_user_keeps_caches(
    command, store, opened, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command("run", store, "Hello", *SHORT)
    assert opened["runtime"].device_cache == tmp_path / "flashmoe" / "devices.json"


def test_experts_left_to_the_page_cache_have_no_hit_rate(command: Command, store):
    arguments = ("--io", "os", "--no-profile", "--stats", "json")  # none is read ahead of its use
    found = stats(command("run", store, "Hello", *SHORT, *arguments))
    assert found["hit_rate"] is None and found["hits"] == 0 < found["misses"]
    assert found["io"] == "os" and found["slots"] == 3
    result = command("run", store, "Hello", *SHORT, "--io", "os", "--slots", 8)
    assert result.code == 2 and "leave out --slots" in result.err


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_kernels_are_chosen_by_name(command: Command, store, monkeypatch, name):
    chosen = []
    real = Engine.session

    def spy(self: Engine) -> Session:
        chosen.append(self.kernels.name)
        return real(self)

    monkeypatch.setattr(Engine, "session", spy)
    command("run", store, "Hello", *SHORT, "--kernels", name)
    assert chosen == [name]


# --- output and files


def test_timing_has_a_row_a_layer_and_a_column_a_phase(command: Command, store):
    result = command("run", store, "Hello", *SHORT, "--timing")
    lines = result.err.splitlines()
    head = next(line for line in lines if "mixer" in line)
    assert head.split()[-7:] == ["embed", "mixer", "route", "shared", "experts", "head", "total"]
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert [rows[str(layer)][0] for layer in range(4)] == ["recurrent"] * 2 + [
        "attention",
        "recurrent",
    ]
    for name in ("all", "prompt"):
        times = [float(cell) for cell in rows[name]]
        assert times[-1] == pytest.approx(sum(times[:-1]), abs=0.05) and times[-1] > 0
    assert "waiting for reads" in result.err and "tok/s" in lines[-1]


@pytest.mark.parametrize("slots", [30, 32])
def test_the_routing_log_replays_to_the_run_s_own_misses(command, store, tmp_path, slots):
    path = tmp_path / "log"
    found = stats(
        command(
            *("run", store, "Hello", "--max-tokens", 40, "--trace-out", path),
            *("--slots", slots, "--chunk-tokens", 7, "--stats", "json"),
            "--no-hints",  # a wrong guess takes a slot, by the timing of the disk
        )
    )
    log = routing_log.read(path)
    assert log.header == routing_log.Header(4, 8, 3, (4096,) * 4, slots)
    assert log.prompt_tokens == 26 and len(log.ids) == 26 + found["tokens"] - 1
    assert log.passes.max() + 1 == 4 + found["tokens"] - 1, "a prompt of 26 in chunks of 7"
    replayed = routing.replay(log, slots)
    assert (replayed.hits, replayed.cold + replayed.capacity) == (found["hits"], found["misses"])


def test_a_conversation_goes_on(command: Command, store, opened, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    command("run", store, "Hello", *SHORT, "--save", kept)
    with Engine.open(store) as engine:
        session = engine.session()
        session.load(kept)
        before = session.ids
        turn = chat(engine, "Again")
        close = [96 + ADDED.index("<|im_end|>"), 0]
    result = command("run", store, "Again", *SHORT, "--load", kept)
    assert result.code == 0
    assert opened["ids"] == close + turn, "the cut reply is closed, then the next turn follows"
    with piped(monkeypatch, b""):
        more = command("run", store, *SHORT, "--load", kept, "--stats", "json")
    assert more.code == 0 and stats(more)["prompt_tokens"] == 0 and opened["ids"] == []
    raw = command("run", store, "x", "--raw", *SHORT, "--load", kept)
    assert raw.code == 0 and len(opened["ids"]) == 1
    assert before[-1] != close[0]


def test_a_reply_that_ended_is_not_closed_twice(command: Command, store, engine, opened, tmp_path):
    session = engine.session()
    session.logits([*chat(engine, "Hello"), 40, 96 + ADDED.index("<|im_end|>")])
    session.save(tmp_path / "kept")
    command("run", store, "Again", *SHORT, "--load", tmp_path / "kept")
    assert opened["ids"] == [0, *chat(engine, "Again")]


def test_what_belongs_to_the_opening_is_refused_later(command: Command, store, tmp_path):
    kept = tmp_path / "kept"
    command("run", store, "Hello", *SHORT, "--save", kept)
    result = command("run", store, "x", "--load", tmp_path / "missing", "--system", "y")
    assert result.code == 2 and "--system" in result.err and result.err.count("\n") == 1
    kept.write_bytes(b"damaged")
    result = command("run", store, "x", "--load", kept)
    assert result.code == 1 and "not a whole saved session" in result.err


def test_a_template_without_earlier_replies_cannot_go_on(store, engine, monkeypatch):
    from flashmoe.apps.conversation import Prompt, next_turn
    from flashmoe.errors import TemplateError

    class Forgetful:
        def render(self, messages: Any, **_: Any) -> list[Segment]:
            return [Segment(messages[-1]["content"], markup=False)]

    monkeypatch.setattr(Engine, "template", Forgetful())
    with pytest.raises(TemplateError, match="use --raw"):
        next_turn(engine, Prompt("hello"), [1, 2])


def test_a_store_without_words_is_named(command: Command, tmp_path):
    from tests.synthetic import write_store

    write_store(tmp_path / "mute")
    result = command("run", tmp_path / "mute", "Hello")
    assert result.code == 2 and "has no chat template" in result.err
    result = command("run", tmp_path / "mute", "Hello", "--raw")
    assert result.code == 2 and "has no tokenizer.json" in result.err


def test_every_flag_of_run_is_used_in_a_test():
    group: Any = typer.main.get_command(cli.app)
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for parameter in group.commands["run"].params:
        for flag in [*parameter.opts, *parameter.secondary_opts]:
            assert not flag.startswith("--") or f'"{flag}"' in source, f"{flag} has no test"


def test_a_session_is_saved_to_files_only(command: Command, store: Path, tmp_path: Path) -> None:
    """A device, a directory or a place that is not there is refused before a token is made."""
    target = tmp_path / "target"
    (tmp_path / "link").symlink_to(target)
    result = command("run", store, "--raw", "Emma", "--max-tokens", 1, "--save", tmp_path / "link")
    assert result.code == 0 and target.is_file() and (tmp_path / "link").is_symlink()
    for place in ("/dev/null", tmp_path, tmp_path / "no" / "where"):
        result = command("run", store, "--raw", "Emma", "--max-tokens", 1, "--save", place)
        assert result.code in (1, 2) and result.out == "" and str(place) in result.err
    assert Path("/dev/null").is_char_device()


def write_template(template: str, to: Path) -> Path:
    """The demo with another chat template."""
    shutil.copytree(Store.open("demo").path, to)
    (to / "chat_template.jinja").write_text(template)
    manifest = Store.open(to).manifest
    sums = {**manifest.files, "chat_template.jinja": xxhash.xxh3_64_hexdigest(template.encode())}
    (to / "manifest.json").write_text(replace(manifest, files=sums).to_json())
    return to


PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def test_tools_are_explained_to_a_template_that_has_no_word_on_them(
    command: Command, opened, tmp_path
):
    (tmp_path / "tools.json").write_text(json.dumps(CLOCK))
    plain = write_template(PLAIN, tmp_path / "plain")
    result = command("run", plain, "Hi", "--tools", tmp_path / "tools.json", *SHORT)
    assert result.code == 0 and opened["grammars"] and opened["guide"] is not None
    with Engine.open(plain) as engine:
        told = engine.tokenizer.decode(opened["ids"])
    assert told.startswith("system: ") and '"name": "clock"' in told and "user: Hi" in told
    assert command("run", plain, "Hi", *SHORT).code == 0
    assert not opened["grammars"] and opened["guide"] is None
    for flag in ("--think", "--no-think"):
        assert command("run", plain, "Hi", "--raw", flag, *SHORT).code == 2
    assert "no mark for it" in command("run", plain, "Hi", "--think", *SHORT).last
    kept = tmp_path / "kept"
    command("run", plain, "Hi", "--save", kept, *SHORT)
    assert "no mark for" in command("run", plain, "Hi", "--load", kept, "--think", *SHORT).last


def test_calls_in_a_form_that_is_not_read_are_free_and_said_to_be(
    command: Command, opened, tmp_path
):
    (tmp_path / "tools.json").write_text(json.dumps(CLOCK))
    own = "{% for t in tools %}{{ t | tojson }}{% endfor %}" + PLAIN
    other = write_template(own, tmp_path / "other")
    result = command("run", other, "Hi", "--tools", tmp_path / "tools.json", *SHORT)
    assert result.code == 0 and opened["guide"] is None
    assert result.err.startswith("calls are not bound to the schemas of --tools")


def test_calls_are_bound_to_their_schemas(command: Command, tmp_path):
    """The only city there may be is not the one that was asked for."""
    city = {"type": "string", "enum": ["Highbury"]}
    function = {
        "name": "get_weather",
        "description": "Weather for a city on a day",
        "parameters": {"type": "object", "properties": {"city": city}, "required": ["city"]},
    }
    (tmp_path / "tools.json").write_text(json.dumps([{"type": "function", "function": function}]))
    result = command(
        *("run", *DEMO, "What is the weather in Paris on Monday?", "--no-think"),
        *("--tools", tmp_path / "tools.json", "--temperature", 0),
    )
    assert result.code == 0
    assert result.out == (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nHighbury\n</parameter>\n"
        "</function>\n</tool_call>"
    )


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--prefix-cache", ""), "--prefix-cache has an empty name"),
        (("--prefix-cache-size", "1GiB"), "give its directory too"),
        (("--prefix-cache", "x", "--prefix-cache-size", "0"), "--prefix-cache-size 0 leaves no"),
    ],
)
def test_a_prefix_cache_that_cannot_be_meant(
    command: Command, store, flags: tuple[str, ...], why: str, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    done = command("run", store, "Hi", *SHORT, *flags)
    assert done.code == 2 and why in done.err
    assert not list(tmp_path.iterdir())


def test_chunks_that_show_are_told(command: Command, store):
    assert (
        "chunks of 100 tokens show"
        in command("run", store, "Hi", *SHORT, "--chunk-tokens", "100").err
    )
    assert "chunks of" not in command("run", store, "Hi", *SHORT, "--chunk-tokens", "128").err
