"""The text files that travel with the weights: tokenizer, its config, template, generation config.

Owns which files these are and where each comes from, beside the weights or within a GGUF. Does
not interpret them, beyond choosing a chat template.

Invariant: what is given out is a file as it is published, or bytes made from published ones alone.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from flashmoe.errors import CheckpointError
from flashmoe.store.gguf_vocabulary import vocabulary
from flashmoe.store.published_files import OpenFiles, parse_object, read_text

log = logging.getLogger("flashmoe.store.text_files")

TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEXT_FILES = ("tokenizer.json", TOKENIZER_CONFIG, TEMPLATE, "generation_config.json")
TEXT_LIMIT_BYTES = 16 << 20


def text_beside(files: OpenFiles, directory: Path) -> dict[str, Path | bytes]:
    """The text files of a directory, the template of tokenizer_config.json written out.

    Raises:
        CheckpointError: tokenizer_config.json is malformed.
    """
    found: dict[str, Path | bytes] = {
        name: directory / name for name in TEXT_FILES if (directory / name).is_file()
    }
    if TOKENIZER_CONFIG in found and TEMPLATE not in found:
        path = directory / TOKENIZER_CONFIG
        settings = parse_object(read_text(files, path, TEXT_LIMIT_BYTES), str(path))
        template = _template(settings.get("chat_template"), path)
        if template:  # an empty one means that there is none
            found[TEMPLATE] = template.encode()
    return found


def text_of_fields(fields: dict[str, Any], path: Path) -> dict[str, Path | bytes]:
    """The text files made from the metadata of the GGUF at ``path``; none without a vocabulary.

    Raises:
        CheckpointError: the vocabulary is malformed.
    """
    if "tokenizer.ggml.model" not in fields:
        return {}
    try:
        made = vocabulary(fields)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    found: dict[str, Path | bytes] = {
        "tokenizer.json": made.tokenizer_json.encode(),
        TOKENIZER_CONFIG: json.dumps(made.tokenizer_config, ensure_ascii=False).encode(),
        "generation_config.json": json.dumps(made.generation_config).encode(),
    }
    if made.chat_template is not None:
        found[TEMPLATE] = made.chat_template.encode()
    return found


def _template(value: object, path: Path) -> str | None:
    """The template in tokenizer_config.json: a string, or the one that a list calls default."""
    if value is None or isinstance(value, str):
        return value
    templates = value if isinstance(value, list) else []
    for entry in templates:
        match entry:
            case {"name": "default", "template": str(template)}:
                log.info("%s has %d chat templates; taking 'default'", path, len(templates))
                return template
    raise CheckpointError(
        f"{path}: chat_template is neither text nor a list with one called 'default': put the "
        f"wanted one into {TEMPLATE} beside it"
    )
