"""The figures of tool requests: how many replies were well-formed, valid and right.

Owns their names and wording, as a table or as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flashmoe.apps.eval import keys
from flashmoe.apps.eval.replies import SIDES, Answer
from flashmoe.apps.eval.request import ToolsRequest
from flashmoe.apps.plurals import counted

if TYPE_CHECKING:
    from rich.table import Table


def figures(tools: ToolsRequest, answers: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """Every figure, by ``keys.TOOLS`` and ``keys.SIDE``."""
    some = answers[SIDES[0]]
    expected = sum(one.case.name is not None for one in some)
    found = {
        "file": str(tools.path),
        "cases": len(some),
        "expected": expected,
        "temperature": tools.temperature,
        "seed": tools.seed,
        "max_tokens": tools.max_tokens,
        **{side: _side(answers[side], expected) for side in SIDES},
    }
    return {key: found[key] for key in keys.TOOLS}


def _side(answers: Sequence[Answer], expected: int) -> dict[str, Any]:
    verdicts = [one.verdict for one in answers]
    found = {
        "well_formed": sum(one.well_formed for one in verdicts),
        "valid": sum(one.valid for one in verdicts),
        "right": sum(one.right is True for one in verdicts) if expected else None,
        "cut": sum(one.finish == "length" for one in answers),
        "tokens": sum(one.tokens for one in answers),
        "faults": [
            {"case": one.case.place, "fault": one.verdict.fault, "reply": one.text}
            for one in answers
            if one.verdict.fault is not None
        ],
    }
    return {key: found[key] for key in keys.SIDE}


def table(found: dict[str, Any]) -> Table:
    """Both sides beside each other."""
    from rich.table import Table

    rows = Table(box=None)
    rows.add_column("of replies")
    for side in SIDES:
        rows.add_column(side, justify="right")
    for name, key, total in (
        ("well-formed", "well_formed", found["cases"]),
        ("valid", "valid", found["cases"]),
        ("right", "right", found["expected"]),
    ):
        if total:
            counts = (f"{found[side][key]} ({found[side][key] / total:.1%})" for side in SIDES)
            rows.add_row(f"{name}, of {total}", *counts)
    rows.add_row("cut", *(str(found[side]["cut"]) for side in SIDES))
    rows.add_row("tokens", *(str(found[side]["tokens"]) for side in SIDES))
    return rows


def heading(found: dict[str, Any]) -> str:
    """What was asked, in a line."""
    drawn = "greedy"
    if found["temperature"]:
        drawn = f"at temperature {found['temperature']:g}, seeds from {found['seed']}"
    return f"{found['file']}: {counted(found['cases'], 'tool request')}, {drawn}"
