"""Model dimensions: the JSON form, and refusal of what does not fit together."""

import json

import pytest

from flashmoe import shape
from flashmoe.errors import InputError
from flashmoe.shape import AttentionShape, ExpertsShape, ModelShape, RecurrentShape

ATTENTION = AttentionShape(4, 2, 64, 16, 1e7, gated=True, qk_norm=True)
RECURRENT = RecurrentShape(4, 8, 32, 32, 4)
EXPERTS = ExpertsShape(32, 4, 64, "softmax", renormalize=True, shared_intermediate=128)


def model(**changes):
    fields = dict(
        family="qwen3_5_moe",
        hidden=256,
        vocabulary=4096,
        mixers=("recurrent", "attention"),
        attention=ATTENTION,
        recurrent=RECURRENT,
        experts=EXPERTS,
        norm_eps=1e-6,
        norm_offset=1,
        tied_head=False,
        max_context_tokens=4096,
    )
    return ModelShape(**{**fields, **changes})


def test_a_shape_survives_json():
    for each in (model(), model(mixers=("attention",), recurrent=None)):
        assert shape.parse(json.loads(json.dumps(shape.describe(each)))) == each


def test_conv_channels_hold_queries_keys_and_values():
    assert RECURRENT.conv_channels == 2 * 4 * 32 + 8 * 32


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden": 0}, "hidden is 0"),
        ({"hidden": 2**40}, "hidden is"),
        ({"hidden": True}, "hidden is True"),
        ({"mixers": ()}, "0 layers"),
        ({"mixers": ("attention",)}, "recurrent dimensions do not agree"),
        ({"mixers": ("attention", "recurrent", "mamba")}, "not all known"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"norm_offset": 2}, "norm_offset"),
    ],
)
def test_a_model_that_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        model(**changes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AttentionShape(5, 2, 64, 16, 1e7, True, True),
        lambda: AttentionShape(4, 2, 64, 65, 1e7, True, True),
        lambda: AttentionShape(4, 2, 64, 66, 1e7, True, True),
        lambda: AttentionShape(4, 2, 64, 16, 0.5, True, True),
        lambda: RecurrentShape(3, 8, 32, 32, 4),
        lambda: ExpertsShape(4, 5, 64, "softmax", True, 0),
        lambda: ExpertsShape(4, 2, 64, "all", False, 0),
        lambda: ExpertsShape(4, 2, 64, "sigmoid", False, 0),
    ],
)
def test_parts_that_do_not_fit_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_a_missing_or_unknown_field_is_named():
    description = shape.describe(model())
    with pytest.raises(InputError, match="sinks"):
        shape.parse({**description, "sinks": True})
    description.pop("hidden")
    with pytest.raises(InputError, match="hidden"):
        shape.parse(description)
