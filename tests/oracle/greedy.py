"""A greedy continuation by transformers, and ours held against it token for token.

Owns the rule for near ties: where float32 noise may decide, either choice is right, the
difference is reported, and the comparison goes on with transformers' token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flashmoe import Session
from flashmoe.model.observer import Observer
from flashmoe.quant import Array
from tests.tolerances import NEAR_TIE

torch.set_num_threads(1)  # one token is too little work to share, and waiting costs more


@dataclass(frozen=True)
class Continuation:
    """What transformers wrote after ``prompt``.

    ``ids`` (N,) were chosen at ``logits`` (N, vocabulary); ``router`` holds a layer's router
    logits (T, experts) for the prompt and all of ``ids`` but the last; empty for a dense model.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    logits: Array
    router: tuple[Array, ...]

    @property
    def passed(self) -> tuple[int, ...]:
        """Every token that went through the model."""
        return self.prompt + self.ids[:-1]


def continue_greedily(model: Any, prompt: Sequence[int], tokens: int) -> Continuation:
    """Let a transformers model write so many tokens; it goes on after a stop token."""
    gates = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    seen: list[list[Array]] = [[] for _ in gates]
    hooks = [
        gate.register_forward_hook(lambda _, __, out, log=log: log.append(out[0].numpy().copy()))
        for gate, log in zip(gates, seen, strict=True)
    ]
    rows: list[Array] = []
    fed, cache = list(prompt), None
    try:
        for _ in range(tokens):
            given = torch.tensor([fed])
            with torch.no_grad():
                out = model(input_ids=given, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, -1].numpy().copy())
            fed = [int(rows[-1].argmax())]
    finally:
        for hook in hooks:
            hook.remove()
    ids = tuple(int(row.argmax()) for row in rows)
    router = tuple(np.concatenate(log) for log in seen)
    return Continuation(tuple(prompt), ids, np.stack(rows), router)


def write_greedily(session: Session, prompt: Sequence[int], tokens: int) -> Array:
    """Our logits (N, vocabulary) of a greedy continuation; it goes on after a stop token."""
    rows = [session.logits(prompt)[-1]]
    while len(rows) < tokens:
        rows.append(session.logits([int(rows[-1].argmax())])[-1])
    return np.stack(rows)


def judge(model: Any, prompt: Sequence[int], logits: Array) -> Continuation:
    """What a transformers model would have chosen at each step of our continuation.

    One pass instead of one a token. Where every choice agrees, its own greedy continuation is
    this one.
    """
    written = logits.argmax(axis=-1).tolist()
    given = torch.tensor([[*prompt, *written[:-1]]])
    with torch.no_grad():
        rows = model(input_ids=given, use_cache=False, logits_to_keep=len(written)).logits[0]
    return Continuation(tuple(prompt), tuple(rows.argmax(dim=-1).tolist()), rows.numpy(), ())


class Routing(Observer):
    """Keeps the experts that every layer chose: ``ids(layer)`` is (T, top_k)."""

    def __init__(self) -> None:
        self._seen: dict[int, list[Array]] = {}

    def routed(self, layer: int, ids: Array) -> None:
        self._seen.setdefault(layer, []).append(ids.copy())

    def ids(self, layer: int) -> Array:
        """All choices of a layer since the last :meth:`clear`."""
        return np.concatenate(self._seen[layer])

    def clear(self) -> None:
        """Forget what was seen."""
        self._seen.clear()


def forced(session: Session, continuation: Continuation) -> Array:
    """Our logits (N, vocabulary) at each step, transformers' tokens being fed one by one."""
    rows = [session.logits(continuation.prompt)[-1]]
    rows += [session.logits([number])[-1] for number in continuation.ids[:-1]]
    return np.stack(rows)


def tokens_that_differ(found: Array, expected: Continuation) -> list[str]:
    """The near ties among our choices; anything further apart is an error."""
    notes = []
    for step, (ours, theirs) in enumerate(zip(found, expected.logits, strict=True)):
        mine, chosen = int(ours.argmax()), expected.ids[step]
        if mine != chosen:
            gap = float(theirs[chosen] - theirs[mine])
            assert gap < NEAR_TIE, f"token {step} is {mine}, not {chosen}; their gap is {gap}"
            notes.append(f"token {step}: {mine} for {chosen}, gap {gap:.1e}")
    return notes


def experts_that_differ(found: Routing, expected: Continuation) -> list[str]:
    """The near ties among our routers' choices; anything further apart is an error."""
    notes = []
    for layer, logits in enumerate(expected.router):
        ids = found.ids(layer)
        assert len(ids) == len(logits)
        for token, (ours, theirs) in enumerate(zip(ids, logits, strict=True)):
            chosen = np.argsort(-theirs, kind="stable")[: len(ours)]
            missing, extra = set(chosen) - set(ours), set(ours) - set(chosen)
            if missing:
                gap = float(max(theirs[list(missing)]) - min(theirs[list(extra)]))
                where = f"layer {layer}, token {token}: {sorted(extra)} for {sorted(missing)}"
                assert gap < NEAR_TIE, f"{where}; their gap is {gap}"
                notes.append(f"{where}, gap {gap:.1e}")
    return notes
