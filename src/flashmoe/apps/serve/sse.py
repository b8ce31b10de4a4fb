"""Server-sent events as bytes.

Owns the form (WHATWG HTML, 9.2). Invariant: what is encoded is one event or one comment, whatever
its text says.
"""

from __future__ import annotations

import json
from typing import Any

from flashmoe.apps.serve.ask import Event


def encoded(event: Event) -> bytes:
    """An event, with the empty line that ends it."""
    data = event.data if isinstance(event.data, str) else dumped(event.data)
    name = f"event: {event.name}\n" if event.name else ""
    lines = "".join(f"data: {line}\n" for line in data.split("\n"))
    return f"{name}{lines}\n".encode()


def comment(text: str) -> bytes:
    """A line that clients pass over."""
    return f": {' '.join(text.split())}\n\n".encode()


def dumped(body: Any) -> str:
    """JSON on one line. A lone surrogate, which UTF-8 has no bytes for, is escaped."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(body, allow_nan=False, separators=(",", ":"))
    return text
