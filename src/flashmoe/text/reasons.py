"""llguidance's reasons, in plain words.

Owns what is said of a form that llguidance cannot enforce; not where the fault lies. Its own
messages quote the grammar that was written for it, and tell of its insides.
"""

from __future__ import annotations

import re

_SOURCE = re.compile(  # what follows is the grammar's own text, or a place in what was made of it
    r" \d+ \| (?:start|[rT]\d+)(?:\[\w+\])?:| while processing json-schema:"
)
_PARSE = "regex parse error"

_PLAIN: tuple[tuple[str, str], ...] = (
    (
        "oneOf constraints",
        "the alternatives of oneOf may overlap, and then it cannot be enforced: use anyOf, or make "
        "them exclude each other (by type, or by a property of one constant value each)",
    ),
    (
        "min/maxProperties only",
        "minProperties and maxProperties cannot be enforced beside properties that may be left "
        "out: leave them out, and check the answer for them",
    ),
    (
        "Unable to determine if regex is empty",
        "what is asked of one text at once is too complex together: state one pattern",
    ),
    ("Pointer '", "a reference leads nowhere within the schema: mend its $ref"),
    ("Resource '", "a reference leads out of the schema, and none is fetched: put its target in"),
    (
        "items; max is",
        "it leaves too many choices at one place (of 500 properties, say, that may be left out): "
        "make it smaller, or require more",
    ),
    ("NoExtensionBias", "no text that the model's tokens can spell fits it: make it admit more"),
    ("attern properties", "patternProperties that overlap cannot be enforced: state one pattern"),
)
_LARGE = ("too large", "too big", "too many", "TooComplex", "fuel", "limit")
_NONE_FITS = re.compile(r"[Uu]nsatisfiable|is empty|schema is false|incompatible")


def plain(reason: str) -> str:
    """What is wrong, and the mend, for a reason that llguidance gave."""
    line = _SOURCE.split(" ".join(reason.split()), maxsplit=1)[0]
    if _PARSE in line:
        return f"the pattern is not usable ({line.rpartition('error: ')[2][:120]}): mend it"
    for sign, words in _PLAIN:
        if sign in line:
            return words
    if any(sign in line for sign in _LARGE):
        return "it is too large or too complex: make it smaller, or bound lengths and repeats"
    if _NONE_FITS.search(line):
        return "no value fits it: what it asks for contradicts itself; leave some of it out"
    return "it cannot be enforced: make it simpler, and check the answer for the rest"
