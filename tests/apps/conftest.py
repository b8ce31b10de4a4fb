"""A tiny store that has words, and the command line as a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import pytest
import xxhash

from flashmoe.apps import cli
from flashmoe.errors import DeviceError
from flashmoe.store.layout import MANIFEST
from flashmoe.store.manifest import Manifest
from flashmoe.text.detokenizer import byte_alphabet
from tests.kernels.cuda.emulated import EmulatedDevice
from tests.synthetic import HYBRID, write_store

GOLDEN = Path(__file__).parents[1] / "golden"
ADDED = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
SHAPE = replace(HYBRID, vocabulary=128)


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on standard error."""
        return self.err.splitlines()[-1]


Command = Callable[..., Result]


def tokenizer_json() -> str:
    """A byte-level tokenizer without merges: printable ASCII and the line break, 96 tokens."""
    alphabet = byte_alphabet()
    vocabulary = {alphabet[byte]: index for index, byte in enumerate([10, *range(32, 127)])}
    added = [
        {
            "id": len(vocabulary) + index,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": index < 2,
        }
        for index, content in enumerate(ADDED)
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    definition = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    return json.dumps(definition)


def write_speaking_store(path: Path, template: str | None = None) -> Path:
    """A complete store of random weights with a tokenizer and a chat template, Qwen3.5's unless
    another is given."""
    write_store(path, SHAPE)
    files = {
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": json.dumps({"eos_token": "<|im_end|>"}),
        "chat_template.jinja": template or (GOLDEN / "qwen3.5.jinja").read_text(),
        "generation_config.json": json.dumps({"do_sample": False}),
    }
    for name, text in files.items():
        (path / name).write_text(text)
    checksums = {name: xxhash.xxh3_64_hexdigest(text.encode()) for name, text in files.items()}
    manifest = Manifest.from_json((path / MANIFEST).read_text(), MANIFEST)
    (path / MANIFEST).write_text(replace(manifest, files=checksums).to_json())
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that no test changes."""
    return write_speaking_store(tmp_path_factory.mktemp("apps") / "store")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> EmulatedDevice:
    """What ``--kernels cuda`` finds: a GPU that is imitated."""
    device = EmulatedDevice()

    def opened(number: int = 0) -> EmulatedDevice:
        if number:
            raise DeviceError(f"there is no GPU {number}: this machine has 1, from 0 on")
        return device

    monkeypatch.setattr("flashmoe.kernels.cuda.gpu.Gpu", opened)
    return device


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``--kernels cuda`` finds on most machines."""

    def opened(number: int = 0) -> NoReturn:
        raise DeviceError("no NVIDIA GPU can be used: run with --kernels cpu")

    monkeypatch.setattr("flashmoe.kernels.cuda.gpu.Gpu", opened)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """``command("run", store, "hello")`` runs the command line in this process."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call
