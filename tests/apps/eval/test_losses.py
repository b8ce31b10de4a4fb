"""Losses and divergences against a plain computation in float64 from all logits at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe import Budget, Engine, Runtime
from flashmoe.apps.eval import text_figures
from flashmoe.apps.eval.document import Document
from flashmoe.apps.eval.losses import compare, kullback_leibler, losses, remember
from flashmoe.apps.eval.remembered import Remembered
from flashmoe.progress import Progress
from flashmoe.scoring import log_probabilities, words_of

TEXT = "The quick brown fox jumps over the lazy dog, and\nback again: 0123456789 times. " * 3


@pytest.fixture(scope="module")
def engine(store):
    with Engine.open(store, budget=Budget(kv="f32"), runtime=Runtime(profile=False)) as engine:
        yield engine


@pytest.fixture(scope="module")
def fewer(store):
    with Engine.open(
        store, budget=Budget(kv="f32"), experts_per_token=1, runtime=Runtime(profile=False)
    ) as engine:
        yield engine


@pytest.fixture
def document(engine, tmp_path):
    path = tmp_path / "text"
    path.write_text(TEXT)
    return Document.read(path, engine.tokenizer, 70, 40, None)


def plain(engine: Engine, document: Document) -> np.ndarray:
    """Log-probabilities (n, words) at every scored position."""
    rows = []
    for window in document.windows:
        logits = engine.session().logits(document.ids[window.begin : window.end].tolist())
        logits = logits[:, : words_of(engine)].astype(np.float64)
        rows.append((logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[-window.scored :])
    return np.concatenate(rows)


def quiet(_: Progress) -> None:
    pass


def test_losses_are_those_of_all_logits(engine, document):
    found = losses(engine, document, quiet)
    expected = -plain(engine, document)[np.arange(len(document.ids) - 1), document.ids[1:]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    figures = text_figures.figures(document, found)
    assert figures["scored_tokens"] == len(document.ids) - 1 == len(found)
    assert figures["perplexity"] == pytest.approx(np.exp(expected.mean()), rel=1e-5)
    error = expected.std(ddof=1) / np.sqrt(len(expected))
    assert figures["nats_per_token_se"] == pytest.approx(error, rel=1e-4)
    assert figures["perplexity_se"] == pytest.approx(np.exp(expected.mean()) * error, rel=1e-4)
    assert figures["scored_bytes"] == len(TEXT) - 1  # its tokens are bytes
    bits = expected.sum() / np.log(2) / (len(TEXT) - 1)
    assert figures["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_the_first_windows_alone(engine, document):
    whole = losses(engine, document, quiet)
    two = Document.read(document.path, engine.tokenizer, 70, 40, 2)
    found = losses(engine, two, quiet)
    np.testing.assert_array_equal(found, whole[: two.scored_tokens])
    assert two.scored_tokens == 110 == two.scored_bytes


def test_progress_counts_all_windows_to_the_end(engine, document):
    told = list[Progress]()
    losses(engine, document, told.append)
    done = [state.done_tokens for state in told]
    assert done == sorted(done) and done[0] == 0
    assert done[-1] == document.passing_tokens == told[0].total_tokens


def remembered(engine: Engine, document: Document) -> Remembered:
    kept = Remembered(engine.store)
    remember(engine, document, kept, quiet)
    kept.begin(engine.kernels)
    return kept


def test_a_store_does_not_differ_from_itself(engine, document):
    with remembered(engine, document) as kept:
        found = compare(engine, document, kept, quiet)
    assert not found.divergences.any() and found.agreements.all()
    np.testing.assert_array_equal(found.losses, found.others)
    np.testing.assert_array_equal(found.losses, losses(engine, document, quiet))


def test_the_divergence_is_that_of_both_distributions(engine, fewer, document):
    with remembered(engine, document) as kept:
        found = compare(fewer, document, kept, quiet)
    reference, model = plain(engine, document), plain(fewer, document)
    expected = (np.exp(reference) * (reference - model)).sum(axis=1)
    np.testing.assert_allclose(found.divergences, expected, rtol=1e-3, atol=1e-7)
    assert (found.divergences >= 0).all() and found.divergences.mean() > 1e-4
    figures = text_figures.against_figures("other", found)
    assert figures["kl_mean"] == pytest.approx(expected.mean(), rel=1e-3)
    assert figures["kl_max"] == pytest.approx(expected.max(), rel=1e-3)
    same = (reference.argmax(axis=1) == model.argmax(axis=1)).mean()
    assert figures["same_top_1"] == pytest.approx(same)
    pairs = found.losses - found.others
    assert figures["nats_difference"] == pytest.approx(pairs.mean())
    assert figures["nats_difference_se"] == pytest.approx(pairs.std(ddof=1) / len(pairs) ** 0.5)
    assert np.log(figures["perplexity_ratio"]) == pytest.approx(pairs.mean())


rows = st.lists(st.floats(-40, 40, width=32), min_size=5, max_size=5)


@settings(deadline=None)
@given(rows, rows)
def test_no_divergence_is_negative_and_equals_diverge_by_nothing(one, other):
    p, q = (log_probabilities(np.array(row, np.float32), 5) for row in (one, other))
    assert kullback_leibler(p, q) >= 0
    assert kullback_leibler(p, p) == 0
