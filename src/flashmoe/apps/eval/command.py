"""The order of an evaluation: the text, the other store, this store, the cases, the tables.

Standard output gets the figures and nothing else. The text is encoded before an engine is planned,
and one engine at a time is open, so that each has the whole budget.
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any

from flashmoe import kernels as kernel_sets
from flashmoe.apps import progress, terminal
from flashmoe.apps.bench_figures import mean_bits
from flashmoe.apps.eval import keys, losses, replies, text_figures, tool_figures
from flashmoe.apps.eval.cases import Case, read_cases
from flashmoe.apps.eval.document import Document
from flashmoe.apps.eval.remembered import Remembered
from flashmoe.apps.eval.request import Request, TextRequest, ToolsRequest
from flashmoe.apps.eval.validity import Judge
from flashmoe.apps.opening import open_engine
from flashmoe.engine import Engine
from flashmoe.errors import InputError
from flashmoe.store.reader import Store
from flashmoe.stream import memory
from flashmoe.stream.units import format_bytes
from flashmoe.text.tokenizer import Tokenizer
from flashmoe.words import Words


def evaluate(request: Request, *, as_json: bool) -> None:
    """Evaluate a store; print tables, or one JSON object."""
    terminal.take_interrupts()
    began = time.perf_counter()
    store = Store.open(request.store, request.runtime.store_dirs)
    text, tools = request.text, request.tools
    # What cannot be read is named before anything long begins.
    cases = [] if tools is None else read_cases(tools.path)
    document = None if text is None else _document(text, store)
    found: dict[str, Any] = dict.fromkeys(keys.WHOLE)
    with ExitStack() as stack:
        kept = None
        if document is not None and text is not None and text.against is not None:
            kept = _remember(request, text.against, store, document)
            stack.enter_context(kept)
        engine = stack.enter_context(_open(request, request.store, document))
        if document is not None:
            found |= _predicted(engine, document, kept)
        if tools is not None:
            found["tools"] = _asked(engine, tools, cases)
        found |= _about(engine, request)
    found["seconds"] = time.perf_counter() - began
    found["peak_rss_bytes"] = memory.peak_resident_bytes()
    if as_json:
        terminal.write(json.dumps(found) + "\n")
    else:
        _show(found)


def _document(text: TextRequest, store: Store) -> Document:
    """The text in this store's tokens; what that took is given back before a plan is made."""
    context, stride = text.cut(store.shape.max_context_tokens)
    return Document.read(text.path, _tokenizer(store), context, stride, text.windows)


def _tokenizer(store: Store) -> Tokenizer:
    tokenizer = Words(store).tokenizer
    if tokenizer is None:
        raise InputError(f"{store.path} has no tokenizer.json, and so no words to evaluate")
    return tokenizer


def _remember(request: Request, name: str, store: Store, document: Document) -> Remembered:
    """What another store makes of the document."""
    other = Store.open(name)
    _check_words(store, other)
    kept = Remembered(other)
    try:
        alone = replace(
            request,
            tools=None,
            limits=replace(request.limits, experts=None),  # as it was published
            runtime=replace(request.runtime, store_dirs=()),
        )
        with _open(alone, name, document) as engine, _shown(f"{name}: text") as watch:
            losses.remember(engine, document, kept, watch)
            kernels = engine.kernels
        if kernels.device is not None:  # whose memory the other engine is to have
            kernels = kernel_sets.choose("auto", "float32", request.runtime.resolved_threads)
        kept.begin(kernels)
    except BaseException:
        kept.close()
        raise
    return kept


def _check_words(store: Store, other: Store) -> None:
    """A divergence is one of distributions over the same words."""
    name = "tokenizer.json"
    if store.manifest.files.get(name) == other.manifest.files.get(name) is not None:
        return
    ours, theirs = _tokenizer(store), _tokenizer(other)
    size = max(ours.vocab_size, theirs.vocab_size)
    for id in range(size):
        if ours.token(id) != theirs.token(id):
            raise InputError(
                f"{other.path} has another vocabulary than {store.path}: token {id} is "
                f"{theirs.token(id)!r} there and {ours.token(id)!r} here; compare stores of one "
                "model"
            )


def _open(request: Request, name: str, document: Document | None) -> Engine:
    limits = request.limits
    if request.tools is None and document is not None:  # no timeline is longer than a window
        limits = replace(limits, context=document.longest)
    bound = request.tools is not None
    return open_engine(name, limits, request.runtime, request.kernels, grammars=bound)


def _predicted(engine: Engine, document: Document, kept: Remembered | None) -> dict[str, Any]:
    """The figures of the text, and of the other store where there is one."""
    with _shown("text") as watch:
        if kept is None:
            found = losses.losses(engine, document, watch)
            return {"text": text_figures.figures(document, found)}
        compared = losses.compare(engine, document, kept, watch)
    return {
        "text": text_figures.figures(document, compared.losses),
        "against": text_figures.against_figures(str(kept.store.path), compared),
    }


def _asked(engine: Engine, tools: ToolsRequest, cases: list[Case]) -> dict[str, Any]:
    """The figures of the cases."""
    judge, told = Judge(engine.syntax), progress.Tally("tool requests")
    answers = replies.ask(engine, cases, judge, tools.sampling, told, thinking=tools.thinking)
    return tool_figures.figures(tools, answers)


def _about(engine: Engine, request: Request) -> dict[str, Any]:
    return {
        "store": request.store,
        "bits": mean_bits(engine.store),
        "experts_per_token": engine.shape.experts.top_k,
        "kv": engine.kv,
        "ram_bytes": engine.plan.budget_bytes,
    }


def _shown(what: str) -> AbstractContextManager[progress.PromptWatcher]:
    return progress.prompt_shown(plain=True, what=what)


def _show(found: dict[str, Any]) -> None:
    store = (
        f"{found['store']}: {found['bits']:g} bits, {found['experts_per_token']} experts a token"
    )
    terminal.show(store)
    if found["text"] is not None:
        terminal.show("", text_figures.heading(found["text"], found["against"]))
        terminal.show(text_figures.table(found["text"], found["against"]))
    if found["tools"] is not None:
        terminal.show("", tool_figures.heading(found["tools"]), tool_figures.table(found["tools"]))
    peak, ram = format_bytes(found["peak_rss_bytes"]), format_bytes(found["ram_bytes"])
    terminal.show("", f"{found['seconds']:.1f} s, peak memory {peak} of {ram}")
