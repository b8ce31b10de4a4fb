"""How often each expert is chosen: counted while a store runs, kept beside it between starts.

Owns the counts, the file ``usage.json`` in the store's directory, and how an older file and a
newer run become one. Does not own what is done with them (``warmup``, ``cache``).

The file is a wish, not a part of the store: it is written whole or not at all, whatever is in
it changes speed and never an answer, and one that is missing, of another store, or nonsense is
the same as none. What the package ships is not written to: it belongs to the installation.

Invariant: only ``OSError``-free, logged outcomes leave :func:`load` and :func:`save`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from flashmoe.errors import reason
from flashmoe.quant import Array
from flashmoe.store.lock import alone
from flashmoe.store.reader import locate
from flashmoe.store.writer import PartialFile
from flashmoe.stream.kept import read_kept

_log = logging.getLogger(__name__)

FILE = "usage.json"
VERSION = 1

LEAST_TOKENS = 32
"""A run that passed fewer says nothing that is worth keeping."""

HALF_LIFE_TOKENS = 4096
"""What was counted before counts half after so many tokens."""

HEAD_BYTES, COUNT_BYTES = 1 << 10, 24
"""What a file has at most around its counts, and for each. A larger one is none of ours, and
reading it would take memory that no plan knows of."""

PATIENCE_S = 1.0
"""How long to wait for another process that writes the file."""

_MANY = 1 << 12  # ids that are counted together


class Usage:
    """Counts of ``layers`` times ``experts`` experts; ``tokens`` passed while they were made."""

    def __init__(self, layers: int, experts: int) -> None:
        self.tokens = 0.0
        self._counts: Array = np.zeros((layers, experts), np.float64)
        self._waiting: list[list[int]] = [[] for _ in range(layers)]

    def note(self, layer: int, ids: Array) -> None:
        """A layer has chosen ``ids`` (T, k) for T tokens; a vector is one token's."""
        if not layer:
            self.tokens += len(ids) if ids.ndim > 1 else 1
        if ids.size > _MANY // 8:  # a chunk's
            self._counts[layer] += np.bincount(ids.ravel(), minlength=self._counts.shape[1])
            return
        waiting = self._waiting[layer]
        waiting += ids.ravel().tolist()
        if len(waiting) > _MANY:
            self._count(layer)

    def counts(self) -> Array:
        """How many tokens chose each expert, (layers, experts) float64."""
        for layer, waiting in enumerate(self._waiting):
            if waiting:
                self._count(layer)
        return self._counts

    def shares(self) -> Array:
        """The share of the tokens that chose each expert, (layers, experts) float64, 0 to 1."""
        return np.minimum(self.counts() / max(self.tokens, 1.0), 1.0)

    def add(self, earlier: Usage) -> None:
        """Take in what was counted before this, which fades with the tokens since."""
        worth = 2.0 ** (-self.tokens / HALF_LIFE_TOKENS)
        self._counts = self.counts() + worth * earlier.counts()
        self.tokens += worth * earlier.tokens

    def to_json(self, identity: str) -> str:
        """The text of the file."""
        counts = np.round(self.counts(), 2).tolist()
        tokens = round(self.tokens, 2)
        return json.dumps(
            {"version": VERSION, "store": identity, "tokens": tokens, "chosen": counts}
        )

    @staticmethod
    def from_json(text: str, identity: str, layers: int, experts: int) -> Usage:
        """The counts in a text.

        Raises:
            ValueError: it is no such text, or of another store; says what is wrong.
        """
        try:
            found: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not JSON ({error})") from None
        if not isinstance(found, dict) or found.get("version") != VERSION:
            raise ValueError(f"it is not of version {VERSION}")
        if found.get("store") != identity:
            raise ValueError("it belongs to another store, or to what this one was before")
        usage = Usage(layers, experts)
        usage.tokens = float(_numbers([found.get("tokens")], 1)[0])
        rows = found.get("chosen")
        if not isinstance(rows, list) or len(rows) != layers:
            raise ValueError(f"it does not have {layers} layers")
        for layer, row in enumerate(rows):
            usage._counts[layer] = _numbers(row, experts)
        return usage

    def _count(self, layer: int) -> None:
        waiting = self._waiting[layer]
        size = self._counts.shape[1]
        self._counts[layer] += np.bincount(np.array(waiting, np.intp), minlength=size)
        waiting.clear()


def load(directory: Path, identity: str, layers: int, experts: int) -> Usage | None:
    """What earlier runs have counted; None where there is nothing that can be used."""
    path = directory / FILE
    try:
        text = read_kept(path, HEAD_BYTES + COUNT_BYTES * layers * experts)
        return Usage.from_json(text, identity, layers, experts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.info("%s is not used, since %s; a later run writes another", path, reason(error))
        return None


def save(directory: Path, identity: str, usage: Usage) -> bool:
    """Add a run to what is kept; False, and a line in the log, where that cannot be done."""
    if usage.tokens < LEAST_TOKENS or directory.resolve() == locate("demo").resolve():
        return False
    try:
        with alone(directory, PATIENCE_S):
            layers, experts = usage.counts().shape
            earlier = load(directory, identity, layers, experts)
            if earlier is not None:
                usage.add(earlier)
            with PartialFile(directory, FILE) as file:
                file.write(usage.to_json(identity).encode(), 0)
    except OSError as error:
        _log.info("%s is not written: %s", directory / FILE, error.strerror)
        return False
    return True


def _numbers(values: Any, count: int) -> Array:
    """So many finite numbers from 0, as float64."""
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"it lacks a list of {count} numbers")
    if not all(type(value) in (int, float) and 0 <= value < 1e15 for value in values):
        raise ValueError("it has counts that are no counts")
    return np.array(values, np.float64)
