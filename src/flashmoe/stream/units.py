"""Sizes as people write and read them: ``8GiB``, ``500MB``, ``1.50 GiB``."""

from __future__ import annotations

import re
from fractions import Fraction

from flashmoe.errors import InputError

_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*(?:([KMGT])(I?B)?|B)?\Z", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """A size as people write it: ``8GiB`` and ``8G`` are 2**33, ``8GB`` is 8e9, ``123`` bytes.

    Raises:
        InputError: not a size; names the value and the accepted forms.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        raise InputError(f"{text!r} is not a size; write it as 8GiB (or 8G), 500MB or 123 (bytes)")
    number, prefix, suffix = match.groups()
    step = 1000 if suffix and suffix.upper() == "B" else 1024
    power = "KMGT".index(prefix.upper()) + 1 if prefix else 0
    return int(Fraction(number) * step**power)


def format_bytes(nbytes: int) -> str:
    """A size in its largest binary unit, as ``1.50 GiB``."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if nbytes >= 1024**power:
            return f"{nbytes / 1024**power:.2f} {unit}"
    return f"{nbytes} bytes"
