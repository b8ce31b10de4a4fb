"""What a model, or two of them, say of every token of a document.

Owns the measuring; what the numbers come to is ``text_figures``'. All in nats and float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmoe.apps.eval.document import Document
from flashmoe.apps.eval.passing import hidden_states
from flashmoe.apps.eval.remembered import Remembered
from flashmoe.apps.progress import PromptWatcher
from flashmoe.engine import Engine
from flashmoe.scoring import Scores, log_probabilities, words_of


@dataclass(frozen=True)
class Compared:
    """Two models on the same n tokens, each (n,): the loss of either, the divergence of this one
    from the other, and whether both find the same token likeliest."""

    losses: Scores
    others: Scores
    divergences: Scores
    agreements: Scores


def remember(engine: Engine, document: Document, kept: Remembered, watch: PromptWatcher) -> None:
    """Pass the document and keep its hidden states."""
    for hidden, _ in hidden_states(engine, document, watch):
        kept.write(hidden)


def losses(engine: Engine, document: Document, watch: PromptWatcher) -> Scores:
    """The negative log-probability (n,) of each scored token, in order."""
    words, found = words_of(engine), list[float]()
    for hidden, following in hidden_states(engine, document, watch):
        for logits, id in zip(engine.head(hidden), following, strict=True):
            found.append(-float(log_probabilities(logits, words)[id]))
    return np.array(found)


def compare(engine: Engine, document: Document, kept: Remembered, watch: PromptWatcher) -> Compared:
    """Both models' losses and the divergence at each scored token; ``kept`` has begun."""
    words, found = words_of(engine), list[tuple[float, float, float, float]]()
    for hidden, following in hidden_states(engine, document, watch):
        pairs = zip(engine.head(hidden), kept.logits(len(hidden)), following, strict=True)
        for ours, theirs, id in pairs:
            mine, other = log_probabilities(ours, words), log_probabilities(theirs, words)
            agree = float(int(mine.argmax()) == int(other.argmax()))
            divergence = kullback_leibler(other, mine)
            found.append((-float(mine[id]), -float(other[id]), divergence, agree))
    return Compared(*np.array(found).T)


def kullback_leibler(reference: Scores, model: Scores) -> float:
    """How far ``model`` is from ``reference``, both log-probabilities (words,): Σ p·(ln p - ln q).

    Never below 0: what rounding would make of two that are all but equal is 0.
    """
    return max(float(np.dot(np.exp(reference), reference - model)), 0.0)
