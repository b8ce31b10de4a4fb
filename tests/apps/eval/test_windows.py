"""Windows: each token is predicted once, by as much as was promised."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.apps.eval.windows import Window, windows
from flashmoe.errors import InputError


@settings(deadline=None)
@given(st.data(), st.integers(2, 300), st.integers(1, 90))
def test_every_token_but_the_first_is_predicted_once(data, tokens, context):
    stride = data.draw(st.integers(1, context))
    found = windows(tokens, context, stride)
    predicted = [t for w in found for t in range(w.end - w.scored + 1, w.end + 1)]
    assert predicted == list(range(1, tokens))
    for index, window in enumerate(found):
        assert 0 < window.scored <= window.tokens <= context
        assert window.begin == index * stride
        first = window.end - window.scored + 1
        assert first - window.begin >= min(context - stride + 1, first)
    most = data.draw(st.integers(1, len(found) + 2))
    assert windows(tokens, context, stride, most) == found[:most]


def test_pieces_and_a_sliding_window():
    assert windows(10, 4, 4) == [Window(0, 4, 4), Window(4, 8, 4), Window(8, 9, 1)]
    assert windows(10, 4, 2) == [
        Window(0, 4, 4),
        Window(2, 6, 2),
        Window(4, 8, 2),
        Window(6, 9, 1),
    ]


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_that_leaves_tokens_out_is_refused(stride):
    with pytest.raises(InputError, match=rf"--stride is {stride}; .* from 1 to --context, 4"):
        windows(10, 4, stride)


def test_a_single_token_predicts_nothing():
    with pytest.raises(InputError, match="the text has 1 tokens"):
        windows(1, 4, 4)
