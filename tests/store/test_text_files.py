"""The text files beside the weights, and the chat template that is chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flashmoe.errors import CheckpointError
from flashmoe.store.checkpoint import open_checkpoint
from tests.store.small_checkpoints import publish, weights


def test_text_files_beside_the_weights_are_paths(tmp_path: Path) -> None:
    path = publish(tmp_path, {"w": weights(2, 2)})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.text_files == {}
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    names.append("generation_config.json")
    for name in names:
        (path / name).write_text('{"chat_template": "not this"}')
    (path / "vocab.json").write_text("{}")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.text_files == {name: path / name for name in names}


@pytest.mark.parametrize(
    "value",
    [
        "{{ \u00e9 }}",
        [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ \u00e9 }}"}],
    ],
)
def test_a_template_inside_the_tokenizer_config_is_written_out(value: Any, tmp_path: Path) -> None:
    path = publish(tmp_path, {"w": weights(2, 2)})
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.text_files["chat_template.jinja"] == "{{ \u00e9 }}".encode()


@pytest.mark.parametrize("value", [None, "", [{"name": "default", "template": ""}]])
def test_an_empty_template_is_none(value: Any, tmp_path: Path) -> None:
    path = publish(tmp_path, {"w": weights(2, 2)})
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.text_files) == {"tokenizer_config.json"}


@pytest.mark.parametrize("value", [3, [], {}, [{"name": "tools", "template": "x"}], [3], [{}]])
def test_a_template_that_cannot_be_chosen_is_refused(value: Any, tmp_path: Path) -> None:
    path = publish(tmp_path, {"w": weights(2, 2)})
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(CheckpointError, match="put the wanted one into chat_template"),
    ):
        _ = checkpoint.text_files
