"""The names that tools may have.

Owns the kind of value that such a name is. OpenAI and Anthropic take the same characters; a name
with others would pass here and be refused there, and could stand for markup in a model's calls.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.fields import Schema, Text


@dataclass(frozen=True)
class ToolName:
    """A string of 1 to ``most`` letters and digits of ASCII, underscores and dashes."""

    most: int = 64

    def takes(self, value: Any) -> bool:
        """Whether the value is text."""
        return isinstance(value, str)

    def read(self, value: Any, path: str) -> str:
        """The name, checked. Raises BadRequest with the path."""
        name = Text(least=1).read(value, path)
        if not re.fullmatch(self._pattern, name):
            shown = json.dumps(name[:80], ensure_ascii=False)
            raise BadRequest(
                f"{path} is {shown}; it must be 1 to {self.most} letters (a-z, A-Z), digits, "
                "underscores and dashes",
                path,
                "invalid_value",
            )
        return name

    def schema(self) -> Schema:
        """JSON Schema of what is taken."""
        return {"type": "string", "pattern": f"^{self._pattern}$"}

    @property
    def _pattern(self) -> str:
        return f"[a-zA-Z0-9_-]{{1,{self.most}}}"
