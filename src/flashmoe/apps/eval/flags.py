"""What ``eval`` takes: its own flags, those it shares, and what its JSON object has.

Owns names and help; ``request`` makes of them what is to be done.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from flashmoe.apps import flags
from flashmoe.apps.eval import keys
from flashmoe.options import Budget, Runtime

_text = partial(typer.Option, rich_help_panel="A text")
_tools = partial(typer.Option, rich_help_panel="Tool requests")

Text: TypeAlias = Annotated[
    Path | None,
    _text("--text", metavar="FILE", help="Predict this text (UTF-8) and report its perplexity."),
]
Context: TypeAlias = Annotated[
    int | None,
    _text(
        "--context",
        metavar="TOKENS",
        min=1,
        help="Tokens that pass in a window; with --tools also the longest timeline, prompt and "
        "reply together.",
        show_default="512; with --tools the model's limit, at most 4096",
    ),
]
Stride: TypeAlias = Annotated[
    int | None,
    _text(
        "--stride",
        metavar="TOKENS",
        min=1,
        help="From the beginning of a window to the next; what they have in common is context "
        "alone for the second, so that no token is predicted twice.",
        show_default="as --context: nothing in common",
    ),
]
Windows: TypeAlias = Annotated[
    int | None,
    _text(
        "--windows",
        metavar="N",
        min=1,
        help="Only the first so many windows.",
        show_default="all",
    ),
]
Against: TypeAlias = Annotated[
    str | None,
    _text(
        "--against",
        metavar="STORE",
        help="Report how far this store's distributions are from those of another with the same "
        "vocabulary (Kullback-Leibler, exact). The other one passes first; its hidden states lie "
        "in a temporary file.",
    ),
]
Tools: TypeAlias = Annotated[
    Path | None,
    _tools(
        "--tools",
        metavar="CASES",
        help="Ask these tool requests, with and without constrained decoding, and report how many "
        "calls are well-formed, valid and right. JSON lines, or a JSON list, of objects with "
        "`messages` (or a whole `prompt`), `tools` and, if known, the right `name` and "
        "`arguments`.",
    ),
]
Temperature: TypeAlias = Annotated[
    float | None, _tools("--temperature", help="0 is greedy.", show_default="0")
]
Seed: TypeAlias = Annotated[
    int | None,
    _tools("--seed", help="Of the first case; every next one has the next.", show_default="0"),
]
MaxTokens: TypeAlias = Annotated[
    int | None,
    _tools(
        "--max-tokens", help="Cut a reply after so many tokens.", show_default=str(flags.MAX_TOKENS)
    ),
]
Think: TypeAlias = Annotated[
    bool | None,
    _tools(
        "--think/--no-think",
        help="Let the model reason before it calls, where its template has a switch for it.",
        show_default="no-think",
    ),
]


def _told(meanings: Mapping[str, str]) -> str:
    return ", ".join(f"`{key}` ({meaning})" for key, meaning in meanings.items())


EPILOG = (
    f"`--json` writes one object: {_told(keys.WHOLE)}. Of `text`: {_told(keys.TEXT)}. Of "
    f"`against`: {_told(keys.AGAINST)}. Of `tools`: {_told(keys.TOOLS)}. Of each side: "
    f"{_told(keys.SIDE)}."
)


def evaluate(
    store: flags.Store,
    text: Text = None,
    context: Context = None,
    stride: Stride = None,
    windows: Windows = None,
    against: Against = None,
    tools: Tools = None,
    temperature: Temperature = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    think: Think = None,
    experts_per_token: flags.ExpertsPerToken = None,
    ram: flags.Ram = None,
    vram: flags.Vram = None,
    slots: flags.Slots = None,
    kv: flags.Kv = Budget.kv,  # type: ignore[assignment]
    threads: flags.Threads = None,
    chunk_tokens: flags.ChunkTokens = Runtime.chunk_tokens,
    io_threads: flags.IoThreads = Runtime.io_threads,
    hints: flags.Hints = Runtime.hints,
    io: flags.HowRead = Runtime.io,
    store_dirs: flags.StoreDirs = None,
    kernels: flags.Kernels = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Measure how good a store's answers are: perplexity, divergence, tool calls.

    The usage profile is neither used nor kept. `--experts-per-token` counts for STORE and not for
    the one that it is compared with.
    """
    given: dict[str, Any] = locals()
    from flashmoe.apps.eval.command import evaluate
    from flashmoe.apps.eval.request import request_of

    evaluate(request_of(given), as_json=as_json)
