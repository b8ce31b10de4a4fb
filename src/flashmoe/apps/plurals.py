"""Numbers with their nouns, as people read them: ``1 token``, ``2 tokens``, ``1 reply``."""

from __future__ import annotations


def counted(number: float, noun: str) -> str:
    """The number, whole, and the noun in the form that it wants."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{number:.0f} {noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{number:.0f} {noun[:-1]}ies"
    return f"{number:.0f} {noun}s"
