"""The ``tokenizer.*`` keys of a GGUF, each value checked when it is taken.

Owns the types of those values and the errors for the wrong ones; not what they mean for a
tokenizer. Invariant: no two tokens are spelled alike, and each has one of the six known types.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import UnionType

from flashmoe.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Values of ``tokenizer.ggml.token_type`` (gguf specification)."""

AGAIN = "download the GGUF again, or use another conversion of the model"
"""The mend for a value that no intact file has."""


class Keys:
    """The metadata of one file; every method raises CheckpointError, naming the key."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = fields
        self.tokens = self.texts("tokenizer.ggml.tokens")
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            twice = next(t for index, t in enumerate(self.tokens) if self.ids[t] != index)
            raise CheckpointError(f"tokenizer.ggml.tokens lists {twice!r} twice; {AGAIN}")
        self.types = self._types()

    def text(self, key: str, default: str | None = None) -> str:
        value = self._fields.get(key, default)
        if not isinstance(value, str):
            raise CheckpointError(f"{key} is {shown(value)} instead of a string; {AGAIN}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._fields.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{key} is {shown(value)} instead of true or false; {AGAIN}")
        return value

    def token_id(self, key: str) -> int | None:
        value = self._fields.get(key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < len(self.tokens):
            raise CheckpointError(
                f"{key} is {shown(value)}; ids run from 0 to {len(self.tokens) - 1}; {AGAIN}"
            )
        return value

    def named_token(self, key: str) -> str | None:
        index = self.token_id(key)
        return None if index is None else self.tokens[index]

    def texts(self, key: str) -> list[str]:
        return [value for value in self._listed(key, str, "strings") if isinstance(value, str)]

    def scores(self) -> list[float]:
        key = "tokenizer.ggml.scores"
        scores = [float(str(value)) for value in self._listed(key, float | int, "numbers")]
        if len(scores) != len(self.tokens) or not all(map(math.isfinite, scores)):
            raise CheckpointError(
                f"{key} must hold one finite number for each of {len(self.tokens)} tokens; {AGAIN}"
            )
        return scores

    def _types(self) -> list[int]:
        key = "tokenizer.ggml.token_type"
        if key not in self._fields:
            return [NORMAL] * len(self.tokens)
        types = [value for value in self._listed(key, int, "integers") if isinstance(value, int)]
        if len(types) != len(self.tokens):
            raise CheckpointError(
                f"{key} has {len(types)} entries for {len(self.tokens)} tokens; {AGAIN}"
            )
        unknown = set(types) - set(range(NORMAL, BYTE + 1))
        if unknown:
            raise CheckpointError(f"{key} holds {min(unknown)}; 1 to 6 are known; {AGAIN}")
        return types

    def _listed(self, key: str, kind: type | UnionType, wanted: str) -> list[object]:
        value = self._fields.get(key)
        if not isinstance(value, list | tuple) or not value:
            raise CheckpointError(f"{key} is {shown(value)} instead of {wanted}; {AGAIN}")
        for item in value:
            if not isinstance(item, kind) or isinstance(item, bool):
                raise CheckpointError(f"{key} holds {shown(item)} among {wanted}; {AGAIN}")
        return list(value)


def shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:80]
