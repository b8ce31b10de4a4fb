"""Options refuse what they cannot honour, by field and value, before anything is loaded."""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.engine import Engine
from flashmoe.errors import InputError, StoreError
from flashmoe.generation import Generation
from flashmoe.options import MAX_THREADS, Budget, Runtime, Sampling

WHOLE = {
    Budget: ("ram_bytes", "context_tokens", "slots", "sessions", "host_bytes", "vram_bytes"),
    Runtime: ("threads", "chunk_tokens", "io_threads"),
    Sampling: ("top_k", "seed", "max_tokens", "logprobs"),
}
REAL = (
    *("temperature", "top_p", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty"),
)
OPTIONAL = (
    *("ram_bytes", "context_tokens", "slots", "threads", "chunk_tokens", "io_threads"),
    *("seed", "max_tokens", "logprobs", "vram_bytes"),
)
NO_NUMBERS = ["1", b"1", [1], (1,), {}, 1j]


def refuse(kind, name, value, wanted=""):
    """Making ``kind`` with this one value is refused by name, value and what it must be."""
    text = f"{name} is {re.escape(repr(value))}; it must be .*{wanted}"
    with pytest.raises(InputError, match=text):
        kind(**{name: value})


def test_every_field_is_of_a_kind_that_is_tested_here():
    named = {name for names in WHOLE.values() for name in names} | set(REAL)
    own = {field.name for kind in WHOLE for field in fields(kind)}
    assert own - named == {
        *("hints", "io", "device_cache", "stop", "kv", "profile", "store_dirs"),
    }


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in WHOLE.items() for n in names])
def test_whole_numbers_are_neither_floats_nor_switches(kind, name):
    for value in (*NO_NUMBERS, 20.0, True, float("nan")):
        refuse(kind, name, value, "whole number")
    assert getattr(kind(**{name: 7}), name) == 7
    if name in OPTIONAL:
        assert getattr(kind(**{name: None}), name) is None
    else:
        refuse(kind, name, None)


def test_keys_and_values_are_held_in_a_known_form():
    for value in ("f8", "F32", None, 8):
        refuse(Budget, "kv", value, "f32, f16, bf16, int8")
    assert Budget(kv="int8").kv == "int8" and Budget().kv == "f16"


@pytest.mark.parametrize("name", REAL)
def test_real_numbers_are_in_range_and_finite(name):
    for value in (*NO_NUMBERS, None, True, float("nan"), float("inf"), -101, 101, 10**400):
        refuse(Sampling, name, value, "number")
    assert getattr(Sampling(**{name: 1}), name) == 1


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((Budget, name, 0) for name in WHOLE[Budget] if name != "host_bytes"),
        *((Budget, name, -1) for name in WHOLE[Budget]),
        *((Runtime, name, value) for name in WHOLE[Runtime] for value in (0, -1)),
        (Runtime, "threads", MAX_THREADS + 1),
        (Runtime, "io_threads", 65),
        (Sampling, "temperature", -0.1),
        (Sampling, "top_p", 0),
        (Sampling, "top_p", 1.01),
        (Sampling, "top_k", -1),
        (Sampling, "min_p", -0.1),
        (Sampling, "repetition_penalty", 0.0),
        (Sampling, "repetition_penalty", 5e-324),
        (Sampling, "max_tokens", 0),
        (Sampling, "logprobs", 101),
        (Sampling, "logprobs", -1),
    ],
)
def test_numbers_out_of_range(kind, name, value):
    refuse(kind, name, value)


@pytest.mark.parametrize("value", ["abc", ["abc"], ("",), ("a", 1), None, b"abc", 1])
def test_stop_strings_are_a_tuple(value):
    refuse(Sampling, "stop", value, "a tuple of non-empty strings")


@pytest.mark.parametrize("value", ["abc", ["abc"], ("",), ("a", 1), None, Path("a")])
def test_store_directories_are_a_tuple(value):
    refuse(Runtime, "store_dirs", value, "a tuple of directories")
    assert Runtime(store_dirs=("a", Path("b"))).store_dirs == ("a", Path("b"))


@pytest.mark.parametrize("value", [0, 1, "no", None])
def test_switches_are_switches(value):
    refuse(Runtime, "hints", value, "True or False")


@pytest.mark.parametrize("value", [0, "DIRECT", "", None, True])
def test_ways_to_read_are_named(value):
    refuse(Runtime, "io", value, "one of direct, buffered, os")
    assert [Runtime(io=io).io for io in ("direct", "buffered", "os")]


def test_a_file_of_measurements_is_a_path_or_none(tmp_path):
    refuse(Runtime, "device_cache", "/tmp/devices.json", "the path of a file, or None")
    assert Runtime(device_cache=tmp_path).device_cache == tmp_path
    assert Runtime().device_cache is None


@given(st.integers())
def test_any_whole_number_is_a_seed(seed):
    assert Sampling(seed=seed).seed == seed


def test_limits_themselves_are_allowed():
    assert Runtime(threads=MAX_THREADS).resolved_threads == MAX_THREADS
    Sampling(temperature=0, top_p=1, top_k=0, min_p=1, repetition_penalty=100, stop=("a", "b"))
    Sampling(temperature=100.0, top_p=1e-9, presence_penalty=-100, logprobs=0)


def test_threads_follow_the_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 9}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert Runtime().resolved_threads == 2
    assert Runtime(threads=5).resolved_threads == 5
    monkeypatch.delattr(os, "sched_getaffinity")
    assert Runtime().resolved_threads == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert Runtime().resolved_threads == 1


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", 20.0), ("top_k", True), ("top_p", "0.9"), ("temperature", [1])]
)
def test_a_generation_config_of_wrong_types_is_the_store_s_fault(name, value):
    with pytest.raises(StoreError, match=rf"^here is malformed: {name} is .*; it must be"):
        Generation.from_json(json.dumps({name: value}), "here")


@pytest.mark.parametrize(
    "name, value, kind",
    (
        ("budget", 512, "Budget"),
        ("runtime", 3, "Runtime"),
        ("kernels", None, "str or Kernels"),
        ("prefix_cache", "cache", "PrefixCache"),
        ("experts_per_token", "4", "whole number"),
        ("experts_per_token", True, "whole number"),
    ),
)
def test_an_engine_refuses_what_is_of_another_kind(name, value, kind):
    with pytest.raises(InputError, match=f"{name} is {value!r}; it must be a {kind}"):
        Engine.open("demo", **{name: value})


def test_a_store_is_a_path():
    with pytest.raises(InputError, match="the store is None; it must be a path"):
        Engine.open(None)
