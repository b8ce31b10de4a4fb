"""What a schema as a whole comes to: whether some value fits it, and at what expense.

Owns what shows only where references are followed: a schema that contains itself without an end,
and what is asked of one value from several sides at once, whose grammar multiplies. Of a schema
that ``text.schemas`` has made ready, so that every keyword has a value of the right kind.
Bounded: :data:`VISITS` steps, whatever refers to what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flashmoe.text.keywords import LARGEST_MULTIPLE

VISITS = 50_000
"""Real schemas take some hundred, a hundredth of a second."""
PATTERNS_TOGETHER = 8
"""Of one text: by 20 a grammar takes seconds, by 40 minutes."""

Find = Callable[[str], Any]


class TooLarge(Exception):
    """The steps are used up."""


def endless(root: Mapping[str, Any], find: Find) -> bool:
    """Whether every value that fits would have to contain another, and so on without an end.

    ``find`` gives what a reference leads to. Raises TooLarge.
    """
    return not _Ends(find).of(root)


class _Ends:
    """Which parts of a schema have values that end; found in rounds, each with what the last one
    found."""

    def __init__(self, find: Find) -> None:
        self._find, self._left = find, VISITS
        self._known: set[int] = set()  # targets of references that end
        self._seen: set[int] = set()  # in this round

    def of(self, root: Mapping[str, Any]) -> bool:
        while True:
            before = len(self._known)
            self._seen.clear()
            ends = self._part(root)
            if ends or len(self._known) == before:
                return ends

    def _part(self, schema: Any) -> bool:
        self._left -= 1
        if self._left < 0:
            raise TooLarge
        if not isinstance(schema, Mapping) or schema.keys() & {"enum", "const"}:
            return True
        # Lists, so that a round looks at every part.
        found = [self._target(schema["$ref"])] if "$ref" in schema else []
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                found.append(any([self._part(part) for part in schema[keyword]]))
        found += [self._part(part) for part in schema.get("allOf", ())]
        return all([*found, self._inside(schema)])

    def _target(self, reference: str) -> bool:
        target = self._find(reference)
        if not isinstance(target, Mapping) or id(target) in self._known:
            return True
        if id(target) in self._seen:
            return False
        self._seen.add(id(target))
        ends = self._part(target)
        if ends:
            self._known.add(id(target))
        return ends

    def _inside(self, schema: Mapping[str, Any]) -> bool:
        kind = schema.get("type")
        kinds = [kind] if isinstance(kind, str) else kind
        if kinds is None or set(kinds) - {"object", "array"}:
            return True  # something without an inside fits
        return any([getattr(self, f"_{name}")(schema) for name in kinds])

    def _object(self, schema: Mapping[str, Any]) -> bool:
        listed, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        return all([self._part(listed.get(name, others)) for name in schema.get("required", ())])

    def _array(self, schema: Mapping[str, Any]) -> bool:
        items = schema.get("items", True)
        first = schema.get("prefixItems", items if _is_list(items) else [])
        least = int(schema.get("minItems", 0))
        rest = [items] if least > len(first) and not _is_list(items) else []
        return all([self._part(part) for part in [*first[:least], *rest]])


@dataclass(frozen=True)
class _Load:
    """What is asked of one value: so many patterns, and a multiple of this."""

    patterns: int = 0
    multiple: float = 1

    def beside(self, other: _Load) -> _Load:
        """Both at once."""
        return _Load(self.patterns + other.patterns, min(self.multiple * other.multiple, 1e30))

    def instead_of(self, other: _Load) -> _Load:
        """Either: no more than the larger."""
        return _Load(max(self.patterns, other.patterns), max(self.multiple, other.multiple))


_Loads = dict[tuple[str, ...], _Load]


def overload(root: Mapping[str, Any], find: Find) -> str | None:
    """What is asked of one value from too many sides, in plain words; None where nothing is.

    ``find`` gives what a reference leads to. Raises TooLarge.
    """
    loads = _Sides(find).of(root).values()
    patterns = max((load.patterns for load in loads), default=0)
    if patterns > PATTERNS_TOGETHER:
        return (
            f"one text would have to match {patterns} patterns and formats at once, and "
            f"{PATTERNS_TOGETHER} can be enforced together: join some"
        )
    if max((load.multiple for load in loads), default=1) > LARGEST_MULTIPLE:
        return (
            "one number would have to be a multiple of several whose product is over "
            f"{LARGEST_MULTIPLE}: leave some out"
        )
    return None


class _Sides:
    """What is asked of each value, by the way to it; nothing asked is not listed."""

    def __init__(self, find: Find) -> None:
        self._find, self._left = find, VISITS
        self._known: dict[int, _Loads] = {}  # of targets of references

    def of(self, schema: Any) -> _Loads:
        if not isinstance(schema, Mapping):
            return {}
        own = _Load(
            sum(key in schema for key in ("pattern", "format")), schema.get("multipleOf", 1)
        )
        loads: _Loads = {} if own == _Load() else {(): own}
        for joined in self._joined(schema):
            for way, load in joined.items():
                loads[way] = load.beside(loads.get(way, _Load()))
        self._left -= 1 + len(loads)
        if self._left < 0:
            raise TooLarge
        return loads

    def _joined(self, schema: Mapping[str, Any]) -> Iterator[_Loads]:
        """What counts together: each is asked as well as the others."""
        if "$ref" in schema:
            yield self._target(self._find(schema["$ref"]))
        for part in schema.get("allOf", ()):
            yield self.of(part)
        for keyword in ("anyOf", "oneOf"):
            either: _Loads = {}
            for part in schema.get(keyword, ()):
                for way, load in self.of(part).items():
                    either[way] = load.instead_of(either.get(way, _Load()))
            yield either
        for step, part in _inner(schema):
            yield {(step, *way): load for way, load in self.of(part).items()}

    def _target(self, target: Any) -> _Loads:
        if id(target) not in self._known:
            self._known[id(target)] = {}  # of one that contains itself
            self._known[id(target)] = self.of(target)
        return self._known[id(target)]


def _inner(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas of inner values, and the step to each."""
    for name, part in schema.get("properties", {}).items():
        yield f".{name}", part
    items = schema.get("items")
    for keyword in ("additionalProperties", "items"):
        yield keyword, schema.get(keyword)
    for index, part in enumerate(schema.get("prefixItems", items if _is_list(items) else ())):
        yield str(index), part


def _is_list(value: object) -> bool:
    return isinstance(value, list)
