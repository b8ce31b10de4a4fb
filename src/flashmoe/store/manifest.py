"""The manifest: what a complete store holds, and the checksum of all of it.

Owns the JSON form and its strict reading; a malformed or hostile manifest is an error that names
the field, never a surprise later. Does no I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import xxhash

from flashmoe import quant, shape
from flashmoe.errors import InputError, StoreError
from flashmoe.store.layout import (
    ALIGNMENT,
    PROJECTIONS,
    VERSION,
    RecordLayout,
    TrunkTensor,
    layer_file,
)

_CHECKSUM = re.compile(r"[0-9a-f]{16}\Z")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")


@dataclass(frozen=True)
class LayerEntry:
    """The experts of one layer: where the records begin, how they lie, one checksum each."""

    file: str
    layout: RecordLayout
    data_offset: int
    checksums: tuple[str, ...]

    def offset(self, expert: int) -> int:
        """Byte offset of a record in the file."""
        return self.data_offset + expert * self.layout.record_bytes


@dataclass(frozen=True)
class Manifest:
    """Everything about a store but the weights.

    ``trunk`` is in the order of conversion; ``trunk_checksums`` has one entry a stored part.
    ``files`` are the text files beside the weights. ``conversion`` and ``source`` say how the
    store was made; nothing in the engine depends on them.
    """

    shape: shape.ModelShape
    layers: tuple[LayerEntry, ...]
    trunk: tuple[TrunkTensor, ...]
    trunk_checksums: Mapping[str, str]
    files: Mapping[str, str]
    conversion: Mapping[str, Any]
    source: Mapping[str, Any]

    def to_json(self) -> str:
        """The text of manifest.json, sealed with the checksum of all above it.

        The same manifest always gives the same bytes.
        """
        document = self._document()
        return json.dumps({**document, "checksum": seal(document)}, indent=1) + "\n"

    @cached_property
    def checksum(self) -> str:
        """The seal: it names a store, whatever the directory."""
        return seal(self._document())

    def _document(self) -> dict[str, Any]:
        return {
            "format": "flashmoe",
            "version": VERSION,
            "shape": shape.describe(self.shape),
            "conversion": dict(self.conversion),
            "source": dict(self.source),
            "files": dict(self.files),
            "trunk": {
                tensor.name: {"form": quant.describe(tensor.form), "shape": list(tensor.shape)}
                for tensor in self.trunk
            },
            "trunk_checksums": dict(self.trunk_checksums),
            "layers": [_describe_layer(layer) for layer in self.layers],
        }

    @staticmethod
    def from_json(text: str, origin: str) -> Manifest:
        """Read a manifest; ``origin`` names it in errors.

        Raises:
            StoreError: not JSON, another version, a field that is malformed, or any change since.
        """
        try:
            manifest = _parse(json.loads(text), origin)
        except (InputError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as bad:
            detail = f"field {bad} is missing" if isinstance(bad, KeyError) else str(bad)
            raise StoreError(
                f"{origin} is malformed: {detail}; convert the checkpoint again"
            ) from bad
        if manifest.to_json() != text:
            raise StoreError(
                f"{origin} does not match its own checksum: it was changed after conversion; "
                "restore it, or convert the checkpoint again"
            )
        return manifest


def seal(document: Mapping[str, Any]) -> str:
    """The checksum of a JSON object, written as a store writes it."""
    return xxhash.xxh3_64_hexdigest(json.dumps(document, indent=1).encode())


def _describe_layer(layer: LayerEntry) -> dict[str, Any]:
    layout = layer.layout
    forms = dict(zip(PROJECTIONS, (layout.gate, layout.up, layout.down), strict=True))
    return {
        "file": layer.file,
        "data_offset": layer.data_offset,
        "record_bytes": layout.record_bytes,
        "forms": {name: quant.describe(form) for name, form in forms.items()},
        "checksums": list(layer.checksums),
    }


def _parse(document: Any, origin: str) -> Manifest:
    if not isinstance(document, dict) or document.get("format") != "flashmoe":
        raise StoreError(f"{origin} is not the manifest of a flashmoe store")
    if document.get("version") != VERSION:
        raise StoreError(
            f"{origin} has format version {document.get('version')!r}; this flashmoe reads "
            f"version {VERSION}: convert the checkpoint again, or install the matching release"
        )
    model = shape.parse(document["shape"])
    layers = tuple(
        _parse_layer(index, entry, model) for index, entry in enumerate(document["layers"])
    )
    if len(layers) != model.layers:
        raise ValueError(f"{len(layers)} layer files for a model of {model.layers} layers")
    trunk = tuple(_parse_tensor(name, entry) for name, entry in document["trunk"].items())
    checksums = {name: _checksum(text) for name, text in document["trunk_checksums"].items()}
    if {name for tensor in trunk for name, _ in tensor.named_parts()} != set(checksums):
        raise ValueError("trunk and trunk_checksums do not name the same parts")
    files = {_file(name): _checksum(text) for name, text in document["files"].items()}
    told = (document["conversion"], document["source"])
    if not all(isinstance(each, dict) for each in told):
        raise ValueError("conversion and source must be objects")
    return Manifest(model, layers, trunk, checksums, files, *told)


def _parse_layer(index: int, entry: dict[str, Any], model: shape.ModelShape) -> LayerEntry:
    experts = model.experts
    gate, up, down = (quant.parse(entry["forms"][name]) for name in PROJECTIONS)
    layout = RecordLayout(gate, up, down, model.hidden, experts.intermediate)
    checksums = tuple(_checksum(text) for text in entry["checksums"])
    if entry["file"] != layer_file(index):
        raise ValueError(f"layer {index} lies in {entry['file']!r}, not in {layer_file(index)}")
    if len(checksums) != experts.count:
        raise ValueError(f"layer {index} has {len(checksums)} checksums, not {experts.count}")
    if entry["record_bytes"] != layout.record_bytes:
        raise ValueError(f"layer {index} has records of {entry['record_bytes']!r} bytes")
    offset = entry["data_offset"]
    if type(offset) is not int or offset <= 0 or offset % ALIGNMENT:
        raise ValueError(f"layer {index} has data_offset {offset!r}")
    return LayerEntry(entry["file"], layout, offset, checksums)


def _parse_tensor(name: str, entry: dict[str, Any]) -> TrunkTensor:
    dimensions = tuple(entry["shape"])
    if not all(type(size) is int and 0 < size <= shape.LIMIT for size in dimensions):
        raise ValueError(f"{name} has shape {dimensions}")
    form = quant.parse(entry["form"])
    if isinstance(form, quant.Affine) and len(dimensions) != 2:
        raise ValueError(f"{name} of shape {dimensions} cannot be affine")
    return TrunkTensor(name, form, dimensions)


def _checksum(text: Any) -> str:
    if not isinstance(text, str) or not _CHECKSUM.match(text):
        raise ValueError(f"checksum {text!r} is not 16 hexadecimal digits")
    return text


def _file(name: str) -> str:
    """A plain file name: a path in a manifest must not lead out of the store."""
    if not _FILE.match(name):
        raise ValueError(f"file name {name!r} is not a plain name")
    return name
