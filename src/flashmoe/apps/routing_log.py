"""The routing log: which experts every token chose, one JSON object a line.

Owns the format, its writer and its strict reader. The first line of a log that ``run`` writes is
a header, ``{"flashmoe_trace": 1, "layers": L, "experts": E, "top_k": k, "record_bytes": [...],
"slots": n}``; then a line a token, ``{"tok": i, "phase": "prompt"|"decode", "pass": p, "layers":
[[ids], ...]}``, ids rising. Tokens of one forward pass share ``pass``: the streamer asks for
their experts together. Only ``layers`` is needed to read a log; without ``pass`` every token is
a pass of its own.

Invariant: a token is written when its pass has gone through every layer, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, TypeAlias

import numpy as np

from flashmoe.errors import InputError, reason
from flashmoe.model.observer import Observer, Phase
from flashmoe.quant import Array

VERSION = 1

EXPERTS_LIMIT = 1 << 16
"""No model has this many experts a layer; a larger number is a damaged or hostile log."""

Part: TypeAlias = Literal["prompt", "decode"]


@dataclass(frozen=True)
class Header:
    """What a log says of the model and the run; None where it does not say."""

    layers: int
    experts: int
    top_k: int
    record_bytes: tuple[int, ...] | None = None
    slots: int | None = None

    def to_json(self) -> str:
        """The first line of a log."""
        fields = {
            "flashmoe_trace": VERSION,
            "layers": self.layers,
            "experts": self.experts,
            "top_k": self.top_k,
            "record_bytes": self.record_bytes,
            "slots": self.slots,
        }
        return json.dumps(fields)


@dataclass(frozen=True)
class RoutingLog:
    """A log in memory: ``ids`` (tokens, layers, top_k), rising; ``passes`` (tokens,), rising.

    ``prompt_tokens`` of the tokens belong to prompts.
    """

    header: Header
    ids: Array
    passes: Array
    prompt_tokens: int


class RoutingWriter(Observer):
    """Writes a log while a model runs. :meth:`start` makes the file, before the first pass.

    ``part`` is what passes belong to from now on.

    Raises:
        InputError: the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.part: Part = "prompt"
        self._path = path
        self._file: TextIO | None = None
        self._layers: list[list[list[int]]] = []
        self._count = 0
        self._tokens = 0
        self._passes = 0

    def start(self, header: Header) -> None:
        """Make the file, in place of one that is there, and write the header."""
        try:
            self._file = self._path.open("w", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error
        self._count = header.layers
        self._write(header.to_json())

    def begin(self) -> None:
        self._layers = []

    def routed(self, layer: int, ids: Array) -> None:
        self._layers.append(np.sort(ids, axis=1).tolist())

    def ended(self, layer: int, phase: Phase) -> None:
        if phase != "experts" or layer != self._count - 1:
            return
        for chosen in zip(*self._layers, strict=True):
            line = {"tok": self._tokens, "phase": self.part, "pass": self._passes, "layers": chosen}
            self._write(json.dumps(line))
            self._tokens += 1
        self._passes += 1

    def close(self) -> None:
        """End the log."""
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from error

    def _write(self, line: str) -> None:
        assert self._file is not None
        try:
            self._file.write(line + "\n")
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> InputError:
        return InputError(
            f"the routing log {self._path} cannot be written: {error.strerror}; "
            "give --trace-out another file"
        )


def read(path: Path) -> RoutingLog:
    """Read a log.

    Raises:
        InputError: missing, or a line that is malformed or of another model than the first.
    """
    header = None
    tokens: list[list[list[int]]] = []
    passes: list[int] = []
    prompt_tokens = 0
    for number, entry in _entries(path):
        where = f"{path} line {number}"
        if number == 1 and "flashmoe_trace" in entry:
            header = _header(entry, where)
            continue
        tokens.append(_layers(entry, where))
        if len(tokens[-1]) != len(tokens[0]) or len(tokens[-1][0]) != len(tokens[0][0]):
            raise InputError(f"{where} has other layers or experts a token than the first token")
        passes.append(_pass(entry, passes, where))
        prompt_tokens += entry.get("phase") == "prompt"
    if not tokens:
        raise InputError(f"{path} has no tokens; make a log with `flashmoe run --trace-out FILE`")
    ids = np.sort(np.array(tokens, np.int32), axis=-1)
    if (np.diff(ids, axis=-1) == 0).any():
        raise InputError(f"{path} has a token that chose one expert of a layer twice")
    if header is None:
        header = Header(ids.shape[1], int(ids.max()) + 1, ids.shape[2])
    _check(header, ids, path)
    return RoutingLog(header, ids, np.array(passes, np.int64), prompt_tokens)


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines that are not empty, with their numbers."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(line, f"{path} line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the routing log {path} cannot be read: {reason(error)}") from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); remove it") from error
    if not isinstance(entry, dict):
        raise InputError(f"{where} is not a JSON object; remove it")
    return entry


def _header(entry: dict[str, Any], where: str) -> Header:
    if entry["flashmoe_trace"] != VERSION:
        raise InputError(
            f"{where}: version {entry['flashmoe_trace']!r} is not {VERSION}; write the log again"
        )
    sizes = [entry.get(name) for name in ("layers", "experts", "top_k")]
    records, slots = entry.get("record_bytes"), entry.get("slots")
    numbers = [*sizes, *([slots] if slots is not None else [])]
    if records is not None and not (isinstance(records, list) and len(records) == sizes[0]):
        raise InputError(f"{where}: record_bytes is not a list with one size a layer")
    if not all(type(n) is int and 0 < n < 1 << 62 for n in [*numbers, *(records or [])]):
        raise InputError(f"{where} is not a header: its sizes must be positive whole numbers")
    layers, experts, top_k = (int(size) for size in sizes if size is not None)
    return Header(layers, experts, top_k, tuple(records) if records else None, slots)


def _layers(entry: dict[str, Any], where: str) -> list[list[int]]:
    layers = entry.get("layers")
    if not isinstance(layers, list) or not layers or not all(isinstance(x, list) for x in layers):
        raise InputError(f'{where} has no "layers": a list of expert ids for each layer')
    if len({len(ids) for ids in layers}) != 1 or not layers[0]:
        raise InputError(f"{where} does not have the same number of experts in every layer")
    if not all(type(i) is int and 0 <= i < EXPERTS_LIMIT for ids in layers for i in ids):
        raise InputError(
            f"{where} has an expert id that is not a whole number below {EXPERTS_LIMIT}"
        )
    return layers


def _pass(entry: dict[str, Any], before: list[int], where: str) -> int:
    last = before[-1] if before else -1
    number = entry.get("pass", last + 1)
    if type(number) is not int or not last <= number < 1 << 62:
        raise InputError(f'{where}: "pass" is {number!r}; passes are whole numbers that rise')
    return number


def _check(header: Header, ids: Array, path: Path) -> None:
    _, layers, top_k = ids.shape
    fits = ids.max() < header.experts <= EXPERTS_LIMIT
    if (layers, top_k) != (header.layers, header.top_k) or not fits:
        raise InputError(
            f"{path}: its tokens choose {top_k} of {int(ids.max()) + 1} or more experts in "
            f"{layers} layers; its header says {header.top_k} of {header.experts} in "
            f"{header.layers}"
        )
