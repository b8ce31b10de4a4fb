"""Two small tokenizers: one byte-level, one SentencePiece with byte fallback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flashmoe.store.gguf_vocabulary import vocabulary
from flashmoe.text import Tokenizer

AUSTEN = Path(__file__).parents[2] / "models" / "austen-moe"
WORDS = [*"▁eths<>/日a", "th", "the", "▁the", "▁a", "he", "</", "s>"]


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return Tokenizer.load(AUSTEN)


@pytest.fixture(scope="session")
def sentence_piece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    special = ["<unk>", "<s>", "</s>", "<tool>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    result = vocabulary(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [-float(index) for index in range(len(tokens))],
            "tokenizer.ggml.token_type": [2, 3, 3, 4, *[6] * 256, *[1] * len(WORDS)],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        }
    )
    directory = tmp_path_factory.mktemp("spm")
    (directory / "tokenizer.json").write_text(result.tokenizer_json)
    (directory / "tokenizer_config.json").write_text(json.dumps(result.tokenizer_config))
    return Tokenizer.load(directory)


@pytest.fixture(scope="session")
def untagged() -> Tokenizer:
    """A byte-level vocabulary without tags for thinking and calls, as SmolLM2's is."""
    definition = json.loads((AUSTEN / "tokenizer.json").read_text())
    added = definition["added_tokens"]
    definition["added_tokens"] = [token for token in added if token["content"].startswith("<|")]
    return Tokenizer(definition, json.loads((AUSTEN / "tokenizer_config.json").read_text()))
