"""The figures of a text: computed from losses, as a table or as JSON.

Owns their names, formulas and wording. A standard error is that of a mean over tokens as if these
knew nothing of one another; of a difference it is taken over the pairs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from flashmoe.apps.eval import keys
from flashmoe.apps.eval.document import Document
from flashmoe.apps.eval.losses import Compared
from flashmoe.apps.plurals import counted
from flashmoe.scoring import Scores

if TYPE_CHECKING:
    from rich.table import Table


def figures(document: Document, losses: Scores) -> dict[str, Any]:
    """Every figure of one store, by ``keys.TEXT``."""
    mean, error = float(losses.mean()), _standard_error(losses)
    perplexity, bits = math.exp(mean), len(losses) / math.log(2) / document.scored_bytes
    found = {
        "file": str(document.path),
        "tokens": len(document.ids),
        "scored_tokens": len(losses),
        "scored_bytes": document.scored_bytes,
        "windows": len(document.windows),
        "context": document.context,
        "stride": document.stride,
        "nats_per_token": mean,
        "nats_per_token_se": error,
        "perplexity": perplexity,
        "perplexity_se": _times(error, perplexity),
        "bits_per_byte": mean * bits,
        "bits_per_byte_se": _times(error, bits),
    }
    return {key: found[key] for key in keys.TEXT}


def against_figures(store: str, compared: Compared) -> dict[str, Any]:
    """Every figure of two stores, by ``keys.AGAINST``."""
    difference = compared.losses - compared.others
    ours, theirs = math.exp(compared.losses.mean()), math.exp(compared.others.mean())
    divergences = compared.divergences
    found = {
        "store": store,
        "perplexity": theirs,
        "nats_difference": float(difference.mean()),
        "nats_difference_se": _standard_error(difference),
        "perplexity_difference": ours - theirs,
        "perplexity_ratio": ours / theirs,
        "kl_mean": float(divergences.mean()),
        "kl_mean_se": _standard_error(divergences),
        "kl_median": float(np.median(divergences)),
        "kl_p99": float(np.percentile(divergences, 99)),
        "kl_max": float(divergences.max()),
        "same_top_1": float(compared.agreements.mean()),
        "same_top_1_se": _standard_error(compared.agreements),
    }
    return {key: found[key] for key in keys.AGAINST}


def _standard_error(values: Scores) -> float | None:
    """Of their mean; None of a single one, which says nothing of how far they spread."""
    if len(values) < 2:
        return None
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _times(error: float | None, factor: float) -> float | None:
    return None if error is None else error * factor


def table(text: dict[str, Any], against: dict[str, Any] | None) -> Table:
    """All of it for a person."""
    from rich.table import Table

    rows = Table(box=None, show_header=False)
    rows.add_column()
    rows.add_column(justify="right")
    rows.add_column()
    rows.add_row("perplexity", *_measured(text, "perplexity"))
    rows.add_row("nats a token", *_measured(text, "nats_per_token"))
    rows.add_row("bits a byte", *_measured(text, "bits_per_byte"))
    if against is not None:
        rows.add_section()
        rows.add_row("of the other", f"{against['perplexity']:.4f}", "perplexity")
        ratio = f"{against['perplexity_ratio'] - 1:+.2%}"
        rows.add_row("difference", f"{against['perplexity_difference']:+.4f}", ratio)
        rows.add_row("in nats", *_measured(against, "nats_difference", "+.4f"))
        rows.add_row("KL, mean", *_measured(against, "kl_mean", ".5f"))
        for name, key in (("median", "kl_median"), ("99 %", "kl_p99"), ("largest", "kl_max")):
            rows.add_row(name, f"{against[key]:.5f}", "")
        rows.add_row("same likeliest", *_measured(against, "same_top_1", ".2%"))
    return rows


def _measured(found: dict[str, Any], key: str, form: str = ".4f") -> tuple[str, str]:
    error = found[f"{key}_se"]
    return f"{found[key]:{form}}", "" if error is None else f"± {error:{form.lstrip('+')}}"


def heading(text: dict[str, Any], against: dict[str, Any] | None) -> str:
    """What was measured, in a line."""
    line = (
        f"{text['file']}: {text['scored_tokens']} of {counted(text['tokens'], 'token')} in "
        f"{counted(text['windows'], 'window')} of {text['context']}, {text['stride']} apart"
    )
    return line if against is None else f"{line}, against {against['store']}"
