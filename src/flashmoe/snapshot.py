"""A timeline at rest: its tokens and state, in memory or in one checksummed file.

Owns the file format: safetensors, every state array under ``layer.name`` and the tokens under
``ids``; metadata names the model and the checksum of all arrays. A file that is cut short,
changed or of another model is refused, never used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flashmoe.errors import InputError
from flashmoe.quant import Array

FORMAT = "flashmoe-session-1"


@dataclass(frozen=True)
class Snapshot:
    """Tokens seen, the last of them perhaps not yet passed, and the state after ``position``."""

    model: str
    ids: tuple[int, ...]
    position: int
    arrays: Mapping[str, Array]

    def save(self, path: Path) -> None:
        """Write to a file, atomically: it is either whole or not there.

        Raises:
            InputError: the file cannot be written.
        """
        tensors = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        tensors["ids"] = np.array(self.ids, np.int64)
        metadata = {
            "format": FORMAT,
            "model": self.model,
            "position": str(self.position),
            "checksum": _checksum(tensors),
        }
        partial = path.with_name(path.name + ".partial")
        try:
            save_file(tensors, partial, metadata=metadata)
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise InputError(f"{path} cannot be written: {error}") from error

    @staticmethod
    def load(path: Path, model: str) -> Snapshot:
        """Read a file that :meth:`save` wrote for the same model.

        Raises:
            InputError: missing, damaged, or saved from another store or dtype.
        """
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            ids = tuple(int(number) for number in tensors["ids"])
            position = int(metadata["position"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{path} is not a saved session: {error}") from error
        if metadata.get("format") != FORMAT or metadata.get("checksum") != _checksum(tensors):
            raise InputError(f"{path} is damaged or of another version; it cannot be used")
        if metadata.get("model") != model:
            raise InputError(
                f"{path} was saved with another store, dtype or number of experts a token"
            )
        del tensors["ids"]
        return Snapshot(model, ids, position, tensors)


def _checksum(tensors: Mapping[str, Array]) -> str:
    digest = xxhash.xxh3_64()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()
