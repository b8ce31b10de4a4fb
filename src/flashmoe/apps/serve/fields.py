"""Tables of parameters: what a body may hold, checked and described from one place.

Owns the kinds of values, the check of a body against them, and the JSON Schema that says the same.
Not what a parameter means: that is each API's.

Invariant: what passes :meth:`Record.read` holds nothing that the table does not name, and every
value is of its kind; anything else is a :class:`BadRequest` with the path to the value, such as
``messages[2].content[0].type``. ``null`` is the same as nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.meant import meant

Schema = dict[str, Any]

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}


class Kind(Protocol):
    """What a value may be."""

    def takes(self, value: Any) -> bool:
        """Whether the value is of this kind's JSON type; for choosing between kinds."""
        ...

    def read(self, value: Any, path: str) -> Any:
        """The value, checked. Raises BadRequest with the path."""
        ...

    def schema(self) -> Schema:
        """JSON Schema of what is taken."""
        ...


def _shown(value: Any) -> str:
    """A value as its sender has written it, or the beginning of that."""
    return json.dumps(value, ensure_ascii=False)[:80]


def _expected(wanted: str, value: Any, path: str) -> BadRequest:
    given = _NAMES[type(value)]
    return BadRequest(f"{path} is {given}; it must be {wanted}", path, "invalid_type")


def _out_of_range(wanted: str, value: Any, path: str) -> BadRequest:
    return BadRequest(f"{path} is {_shown(value)}; it must be {wanted}", path, "invalid_value")


def _check_whole(text: str, path: str) -> None:
    """Refuse half a character: JSON can spell it, and no text can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise BadRequest(
            f"{path} holds half of a character, {half}: give the other half as well, or leave it "
            "out",
            path,
            "invalid_value",
        ) from None


def _check_all(value: Any, path: str) -> None:
    """The same for every text in a value of any kind, names among them."""
    if isinstance(value, str):
        _check_whole(value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_all(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_whole(name, path)
            _check_all(item, f"{path}.{name}")


@dataclass(frozen=True)
class Text:
    """A string, one of ``choices`` where there are any, of at least ``least`` characters."""

    choices: tuple[str, ...] = ()
    least: int = 0

    def takes(self, value: Any) -> bool:
        return isinstance(value, str)

    def read(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise _expected("a string", value, path)
        if self.choices and value not in self.choices:
            wanted = ", ".join(map(_shown, self.choices))
            raise _out_of_range(f"one of {wanted}", value, path)
        if len(value) < self.least:
            raise BadRequest(f"{path} is empty: give some text", path, "invalid_value")
        _check_whole(value, path)
        return value

    def schema(self) -> Schema:
        schema: Schema = {"type": "string"}
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.least:
            schema["minLength"] = self.least
        return schema


@dataclass(frozen=True)
class Whole:
    """A whole number from ``least`` to ``most``, and of 64 bits in any case."""

    least: int | None = None
    most: int | None = None

    def takes(self, value: Any) -> bool:
        return type(value) is int

    def read(self, value: Any, path: str) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)  # JSON knows one kind of number
        if type(value) is not int:
            raise _expected("a whole number", value, path)
        _check_range(self.least, self.most, value, path)
        if abs(value) >= 2**63:  # no program that sends numbers means one
            raise _out_of_range("a number of 64 bits", value, path)
        return value

    def schema(self) -> Schema:
        return {"type": "integer", **_range(self.least, self.most)}


@dataclass(frozen=True)
class Real:
    """A number from ``least`` to ``most``; with ``above`` the least itself is too little."""

    least: float | None = None
    most: float | None = None
    above: bool = False

    def takes(self, value: Any) -> bool:
        return type(value) in (int, float)

    def read(self, value: Any, path: str) -> float:
        if type(value) not in (int, float):
            raise _expected("a number", value, path)
        _check_range(self.least, self.most, value, path)
        if self.above and value == self.least:
            raise _out_of_range(f"above {self.least}", value, path)
        return float(value)

    def schema(self) -> Schema:
        bounds = _range(self.least, self.most)
        if self.above:
            bounds["exclusiveMinimum"] = bounds.pop("minimum")
        return {"type": "number", **bounds}


def _check_range(least: float | None, most: float | None, value: float, path: str) -> None:
    if (least is not None and value < least) or (most is not None and value > most):
        low = "" if least is None else f"at least {least}"
        high = "" if most is None else f"at most {most}"
        raise _out_of_range(" and ".join(filter(None, (low, high))), value, path)


def _range(least: float | None, most: float | None) -> Schema:
    bounds = {"minimum": least, "maximum": most}
    return {name: bound for name, bound in bounds.items() if bound is not None}


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def takes(self, value: Any) -> bool:
        return isinstance(value, bool)

    def read(self, value: Any, path: str) -> bool:
        if not isinstance(value, bool):
            raise _expected("true or false", value, path)
        return value

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Items:
    """A list of at least ``least`` and at most ``most`` values of one kind."""

    of: Kind
    least: int = 0
    most: int | None = None

    def takes(self, value: Any) -> bool:
        return isinstance(value, list)

    def read(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list):
            raise _expected("a list", value, path)
        if len(value) < self.least:
            raise BadRequest(f"{path} is empty: give at least {self.least}", path, "invalid_value")
        if self.most is not None and len(value) > self.most:
            raise BadRequest(
                f"{path} has {len(value)} entries; at most {self.most} are taken",
                path,
                "invalid_value",
            )
        return [self.of.read(item, f"{path}[{index}]") for index, item in enumerate(value)]

    def schema(self) -> Schema:
        schema: Schema = {"type": "array", "items": self.of.schema()}
        if self.least:
            schema["minItems"] = self.least
        if self.most is not None:
            schema["maxItems"] = self.most
        return schema


@dataclass(frozen=True)
class Free:
    """An object of the caller's own, whatever it holds: a schema, arguments, metadata."""

    def takes(self, value: Any) -> bool:
        return isinstance(value, dict)

    def read(self, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _expected("an object", value, path)
        _check_all(value, path)
        return value

    def schema(self) -> Schema:
        return {"type": "object"}


@dataclass(frozen=True)
class Only:
    """One value alone; ``why`` says what else would mean, and the mend."""

    value: Any
    why: str

    def takes(self, value: Any) -> bool:
        return bool(value == self.value) and isinstance(value, bool) == isinstance(self.value, bool)

    def read(self, value: Any, path: str) -> Any:
        if not self.takes(value):
            raise BadRequest(f"{path} is {_shown(value)}: {self.why}", path, "unsupported_value")
        return value

    def schema(self) -> Schema:
        return {"enum": [self.value]}


@dataclass(frozen=True)
class Refused:
    """A parameter of the API that cannot be honoured here, whatever it holds."""

    why: str

    def takes(self, value: Any) -> bool:
        return True

    def read(self, value: Any, path: str) -> Any:
        raise BadRequest(f"{path} is not supported: {self.why}", path, "unsupported_parameter")

    def schema(self) -> Schema:
        return {"not": {}}


@dataclass(frozen=True)
class Either:
    """One of several kinds, of different JSON types; ``wanted`` names them."""

    kinds: tuple[Kind, ...]
    wanted: str

    def takes(self, value: Any) -> bool:
        return any(kind.takes(value) for kind in self.kinds)

    def read(self, value: Any, path: str) -> Any:
        for kind in self.kinds:
            if kind.takes(value):
                return kind.read(value, path)
        raise _expected(self.wanted, value, path)

    def schema(self) -> Schema:
        return {"anyOf": [kind.schema() for kind in self.kinds]}


@dataclass(frozen=True)
class Record:
    """An object whose keys are all named: those of ``fields``, of which ``required`` must be."""

    fields: Mapping[str, Kind]
    required: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    def takes(self, value: Any) -> bool:
        return isinstance(value, dict)

    def read(self, value: Any, path: str = "") -> dict[str, Any]:
        """The values that are given, checked; keys without a value are left out."""
        if not isinstance(value, dict):
            raise _expected("an object", value, path or "the body")
        before = f"{path}." if path else ""
        given = {}
        for name, item in value.items():
            if name not in self.fields:
                raise self._unknown(name, f"{before}{name}"[:200])
            if item is not None:
                given[name] = self.fields[name].read(item, f"{before}{name}")
        for name in self.required:
            if name not in given:
                shown = f"{before}{name}"
                raise BadRequest(f"{shown} is missing", shown, "missing_required_parameter")
        return given

    def _unknown(self, name: str, path: str) -> BadRequest:
        taken = [key for key, kind in self.fields.items() if not isinstance(kind, Refused | Only)]
        near = meant(name, taken)
        asked = "" if near is None else f"; did you mean {near}?"
        return BadRequest(f"{path} is not a known parameter{asked}", path, "unknown_parameter")

    def schema(self) -> Schema:
        properties = {}
        for name, kind in self.fields.items():
            if isinstance(kind, Refused):
                continue  # what is not named is not taken
            described = kind.schema()
            if name not in self.required:
                described = {"anyOf": [described, {"type": "null"}]}
            if name in self.notes:
                described = {**described, "description": self.notes[name]}
            properties[name] = described
        schema: Schema = {
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
        }
        if self.required:
            schema["required"] = list(self.required)
        return schema


@dataclass(frozen=True)
class Tagged:
    """An object of one of several forms, told apart by its ``tag``; ``refused`` says of others,
    which the API knows, why they are not taken; ``default`` is the form of one without the tag,
    where it may be missing."""

    tag: str
    forms: Mapping[str, Record]
    refused: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    def takes(self, value: Any) -> bool:
        return isinstance(value, dict)

    def read(self, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _expected("an object", value, path)
        form, place = value.get(self.tag), f"{path}.{self.tag}"
        form = self.default if form is None else form
        if form is None:
            raise BadRequest(f"{place} is missing", place, "missing_required_parameter")
        if isinstance(form, str) and form in self.refused:
            raise BadRequest(
                f"{place} is {_shown(form)}, which is not supported: {self.refused[form]}",
                place,
                "unsupported_value",
            )
        if not isinstance(form, str) or form not in self.forms:
            wanted = ", ".join(map(_shown, self.forms))
            raise _out_of_range(f"one of {wanted}", form, place)
        rest = {name: item for name, item in value.items() if name != self.tag}
        return {self.tag: form, **self.forms[form].read(rest, path)}

    def schema(self) -> Schema:
        forms = []
        for form, record in self.forms.items():
            schema = record.schema()
            schema["properties"] = {self.tag: {"enum": [form]}, **schema["properties"]}
            if form != self.default:
                schema["required"] = [self.tag, *schema.get("required", [])]
            forms.append(schema)
        return forms[0] if len(forms) == 1 else {"oneOf": forms}
