"""Configs and tensor names of every family: what becomes of them, and what is refused by name."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import CheckpointError, ConversionError, FlashMoeError
from flashmoe.quant import Plain
from flashmoe.shape import AttentionShape, ExpertsShape, RecurrentShape
from flashmoe.store.checkpoint import Checkpoint, open_checkpoint
from flashmoe.store.families import recipe_of
from flashmoe.store.recipe import Recipe
from tests import published as pub
from tests.published import FAMILIES, Published
from tests.republished import GGUF_NAMES, as_mlx, write_gguf

LEGACY = {
    "_name_or_path": "Qwen/base",
    "add_cross_attention": False,
    "auto_map": {"AutoConfig": "configuration.Config"},
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "finetuning_task": None,
    "id2label": {"0": "LABEL_0"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0},
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "typical_p": 1.0,
    "use_bfloat16": False,
}
"""What ``to_dict`` of transformers 4.x writes besides the model's own keys."""


def text_config(published: Published) -> dict[str, Any]:
    """The part of the config that describes the decoder."""
    inner: dict[str, Any] = published.config.get("text_config", published.config)
    return inner


@contextmanager
def opened(published: Published, directory: Path, by: str = "pt") -> Iterator[Checkpoint]:
    with open_checkpoint(published.write(directory, by=by)) as checkpoint:
        yield checkpoint


def recipe(published: Published, directory: Path, by: str = "pt", **options: Any) -> Recipe:
    with opened(published, directory, by) as checkpoint:
        return recipe_of(checkpoint, **options)


def refusal(published: Published, directory: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        recipe(published, directory, **options)
    return str(caught.value)


HYBRID_ATTENTION = AttentionShape(4, 2, 32, 8, 1e7, gated=True, qk_norm=True)
EXPECTED: dict[str, tuple[AttentionShape, RecurrentShape | None, ExpertsShape, int, int]] = {
    "qwen3_5_moe": (
        HYBRID_ATTENTION,
        RecurrentShape(2, 4, 16, 32, 4),
        ExpertsShape(8, 3, 64, "softmax", True, 128),
        1,
        4,
    ),
    "qwen3_next": (
        HYBRID_ATTENTION,
        RecurrentShape(2, 4, 16, 32, 4),
        ExpertsShape(8, 3, 64, "softmax", True, 128),
        1,
        4,
    ),
    "qwen3_moe": (
        AttentionShape(4, 2, 32, 32, 1e4, gated=False, qk_norm=True),
        None,
        ExpertsShape(8, 2, 64, "softmax", True, 0),
        0,
        3,
    ),
    "mixtral": (
        AttentionShape(4, 2, 16, 16, 1e6, gated=False, qk_norm=False),
        None,
        ExpertsShape(4, 2, 128, "softmax", True, 0),
        0,
        3,
    ),
    "llama": (
        AttentionShape(4, 2, 16, 16, 1e4, gated=False, qk_norm=False),
        None,
        ExpertsShape(8, 8, 64, "all", False, 0),
        0,
        3,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_of_every_family(family: str, tmp_path: Path) -> None:
    shape = recipe(FAMILIES[family](), tmp_path).shape
    attention, recurrent, experts, offset, layers = EXPECTED[family]
    assert (shape.family, shape.hidden, shape.vocabulary) == (family, 64, pub.VOCABULARY)
    assert (shape.attention, shape.recurrent, shape.experts) == (attention, recurrent, experts)
    assert (shape.norm_offset, shape.layers, shape.max_context_tokens) == (offset, layers, 512)
    assert shape.norm_eps == (1e-6 if recurrent else 1e-5)
    assert shape.tied_head == (family == "llama")
    hybrid = ("recurrent", "recurrent", "recurrent", "attention")
    assert shape.mixers == (hybrid if recurrent else ("attention",) * 3)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama"])
@pytest.mark.parametrize("fused", [False, True])
def test_experts_fused_or_one_by_one(family: str, fused: bool, tmp_path: Path) -> None:
    made = recipe(FAMILIES[family](fused=fused), tmp_path)
    gate, up, down = made.layers[1].projections()
    width = made.shape.experts.intermediate
    if fused:
        assert (gate.tensor(2), gate.start(2), gate.rows) == (gate.tensor(0), 4 * width, width)
        assert (up.tensor(2), up.start(2)) == (gate.tensor(0), 5 * width)
        assert (down.start(2), down.rows) == (128, 64)
    else:
        assert gate.tensor(2) != gate.tensor(1) and ".experts.2." in gate.tensor(2)
        assert {gate.start(2), up.start(2), down.start(2)} == {0}
        assert len({gate.tensor(2), up.tensor(2), down.tensor(2)}) == 3
    assert gate.inputs(2) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_older_configs_carry_keys_of_generation(family: str, tmp_path: Path) -> None:
    made = FAMILIES[family]()
    expected = recipe(made, tmp_path / "a").shape
    text_config(made).update(LEGACY)
    made.config.update({key: value for key, value in LEGACY.items() if key not in made.config})
    assert recipe(made, tmp_path / "b").shape == expected


def test_transformers_5_writes_other_names(tmp_path: Path) -> None:
    """``num_local_experts`` for Qwen3-MoE, a null head_dim for Mixtral, ``dtype``."""
    old = pub.qwen3_moe()
    expected = recipe(old, tmp_path / "a").shape
    new = pub.qwen3_moe(num_local_experts=8, dtype="BF16")
    del new.config["num_experts"]
    assert recipe(new, tmp_path / "b").shape == expected
    assert "num_experts" in refusal(
        pub.qwen3_moe(num_local_experts=8, num_experts=4), tmp_path / "c"
    )
    mixtral = pub.mixtral(head_dim=None, router_jitter_noise=0.0)
    assert recipe(mixtral, tmp_path / "d").shape.attention == EXPECTED["mixtral"][0]


def test_a_flat_text_model_equals_the_nested_one(tmp_path: Path) -> None:
    nested = pub.qwen3_5_moe()
    flat = Published({**nested.config["text_config"], "architectures": ["Qwen3_5MoeForCausalLM"]})
    for name, array in nested.tensors.items():
        if "visual" not in name:
            flat.tensors[name.replace("model.language_model.", "model.")] = array
    a, b = recipe(nested, tmp_path / "a"), recipe(flat, tmp_path / "b")
    assert a.shape == b.shape
    assert [tensor.target for tensor in a.trunk] == [tensor.target for tensor in b.trunk]


UNKNOWN = [
    ("qwen3_5_moe", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("qwen3_5_moe", {"attention_bias": True}, "attention_bias is True"),
    ("qwen3_5_moe", {"attn_output_gate": False}, "attn_output_gate is False"),
    ("qwen3_5_moe", {"output_gate_type": "sigmoid"}, "output_gate_type is 'sigmoid'"),
    ("qwen3_5_moe", {"norm_topk_prob": False}, "norm_topk_prob is False"),
    ("qwen3_5_moe", {"mlp_only_layers": [0]}, "mlp_only_layers is [0]"),
    ("qwen3_5_moe", {"new_trick": 1}, "new_trick is 1"),
    ("qwen3_5_moe", {"full_attention_interval": 0}, "num_hidden_layers"),
    ("qwen3_next", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
    ("qwen3_next", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping is 30.0"),
    ("qwen3_next", {"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim is 1"),
    ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers is [1]"),
    ("qwen3_moe", {"use_sliding_window": True}, "use_sliding_window is True"),
    ("qwen3_moe", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("qwen3_moe", {"per_layer_config": {"0": {}}}, "per_layer_config"),
    ("qwen3_moe", {"quantization_config": {"quant_method": "fp8"}}, "quant_method 'fp8'"),
    ("mixtral", {"sliding_window": 4096}, "sliding_window is 4096"),
    ("mixtral", {"is_encoder_decoder": True}, "is_encoder_decoder is True"),
    ("llama", {"mlp_bias": True}, "mlp_bias is True"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved is True"),
    ("llama", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ("llama", {"num_attention_heads": 0}, "heads is 0"),
    ("llama", {"num_key_value_heads": 3}, "4 heads do not divide over 3"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
]


@pytest.mark.parametrize(("family", "change", "named"), UNKNOWN, ids=lambda value: str(value)[:40])
def test_a_value_that_would_change_the_maths_is_named(
    family: str, change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    made = FAMILIES[family]()
    text_config(made).update(change)
    message = refusal(made, tmp_path)
    assert named in message and "config.json" in message


@pytest.mark.parametrize("level", ["config", "text_config"])
def test_an_unknown_key_is_refused_at_both_levels(level: str, tmp_path: Path) -> None:
    made = pub.qwen3_5_moe()
    (made.config if level == "config" else made.config["text_config"])["rope_twist"] = [1, 2]
    assert "rope_twist is [1, 2]; this key is not known" in refusal(made, tmp_path)


@pytest.mark.parametrize("key", ["hidden_size", "max_position_embeddings", "vocab_size"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    made = pub.mixtral()
    del made.config[key]
    assert f"does not say {key}" in refusal(made, tmp_path)


@pytest.mark.parametrize("value", ["gpt_oss", None, 3, ["llama"]])
def test_an_unknown_family_is_named(value: object, tmp_path: Path) -> None:
    made = pub.mixtral()
    made.config["model_type"] = value
    message = refusal(made, tmp_path)
    assert repr(value) in message and "qwen3_next" in message


def rope(**statement: Any) -> dict[str, Any]:
    return {"rope_theta": None, "rope_scaling": None, "rope_parameters": None, **statement}


@pytest.mark.parametrize(
    "statement",
    [
        {"rope_theta": 12345.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 12345}},
        {"rope_parameters": {"type": "default", "rope_theta": 12345.0}, "rope_theta": 12345.0},
        {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 1]}, "rope_theta": 12345},
        {"rope_parameters": {"rope_theta": 12345.0, "partial_rotary_factor": 1.0}},
    ],
    ids=str,
)
def test_every_form_of_plain_rope(statement: dict[str, Any], tmp_path: Path) -> None:
    attention = recipe(pub.llama(**rope(**statement)), tmp_path).shape.attention
    assert attention is not None
    assert (attention.rope_theta, attention.rope_dims) == (12345.0, 16)


def test_rope_by_default(tmp_path: Path) -> None:
    """Llama 2 does not say theta; Qwen3-Next's config is no use without it."""
    attention = recipe(pub.llama(**rope()), tmp_path / "a").shape.attention
    assert attention is not None and attention.rope_theta == 10000.0
    assert "does not say rope_theta" in refusal(pub.qwen3_next(**rope()), tmp_path / "b")
    made = pub.qwen3_5_moe()
    del text_config(made)["rope_parameters"]["partial_rotary_factor"]
    attention = recipe(made, tmp_path / "c").shape.attention
    assert attention is not None and attention.rope_dims == 8


@pytest.mark.parametrize("kind", ["yarn", "llama3", "dynamic", "linear", "longrope"])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("field", ["rope_type", "type"])
def test_scaled_rope_is_refused(kind: str, key: str, field: str, tmp_path: Path) -> None:
    made = pub.llama(**rope(**{key: {field: kind, "factor": 4.0}, "rope_theta": 1e4}))
    message = refusal(made, tmp_path)
    assert f"{key}: {field} is '{kind}'" in message


def test_contradicting_or_unknown_rope_is_refused(tmp_path: Path) -> None:
    two = pub.llama(rope_parameters={"rope_theta": 1e6}, rope_theta=1e4)
    assert "gives rope_theta as 10000.0 and as 1000000.0" in refusal(two, tmp_path / "a")
    per_layer = pub.llama(rope_parameters={"full_attention": {"rope_theta": 1e4}})
    assert "full_attention is" in refusal(per_layer, tmp_path / "b")
    text = pub.llama(rope_parameters="default")
    assert "rope_parameters is 'default'" in refusal(text, tmp_path / "c")


def test_layer_types_override_the_interval(tmp_path: Path) -> None:
    made = pub.qwen3_5_moe(full_attention_interval=2)
    text_config(made)["layer_types"] = ["linear_attention", "full_attention"] * 2
    text_config(made)["full_attention_interval"] = 4
    expected = ("recurrent", "attention") * 2
    assert recipe(made, tmp_path / "a").shape.mixers == expected
    text_config(made)["layer_types"][1] = "sliding_attention"
    assert "'sliding_attention' is not among" in refusal(made, tmp_path / "b")
    text_config(made)["layer_types"] = ["full_attention"]
    assert "it must list 4 layers" in refusal(made, tmp_path / "c")


@pytest.mark.parametrize(
    ("outer", "inner", "head", "tied"),
    [
        (None, None, True, False),
        (False, None, True, False),
        (None, True, False, True),
        (True, None, False, True),
        (True, True, True, True),
        (False, True, True, False),
        (False, True, False, True),
    ],
)
def test_a_tied_head_at_either_level(
    outer: bool | None, inner: bool | None, head: bool, tied: bool, tmp_path: Path
) -> None:
    made = pub.qwen3_5_moe()
    made.config["tie_word_embeddings"] = outer
    text_config(made)["tie_word_embeddings"] = inner
    if not head:
        del made.tensors["lm_head.weight"]
    result = recipe(made, tmp_path)
    assert result.shape.tied_head is tied
    assert ("lm_head.weight" in [tensor.target for tensor in result.trunk]) is not tied
    assert ("lm_head.weight" in result.skipped) is (tied and head)


def test_vision_and_mtp_are_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flashmoe")
    made = pub.qwen3_5_moe()
    made.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    skipped = recipe(made, tmp_path).skipped
    others = {name for name in made.tensors if "language_model" not in name} - {"lm_head.weight"}
    assert set(skipped) == others and len(others) == 5
    assert all(any(name in line for line in caplog.messages) for name in others)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    made = pub.mixtral()
    name = "model.layers.2.block_sparse_moe.experts.3.w2.weight"
    del made.tensors[name]
    assert f"has no tensor {name}" in refusal(made, tmp_path / "a")
    made = pub.qwen3_5_moe()
    del made.tensors["model.language_model.embed_tokens.weight"]
    assert "model.language_model.embed_tokens.weight" in refusal(made, tmp_path / "b")


def test_a_wrong_shape_is_named_with_both(tmp_path: Path) -> None:
    made = pub.qwen3_moe()
    name = "model.layers.1.self_attn.k_proj.weight"
    made.tensors[name] = made.tensors[name][:-1]
    message = refusal(made, tmp_path)
    assert f"tensor {name} has shape (63, 64)" in message and "(64, 64)" in message


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    made = pub.llama()
    name = "model.layers.0.self_attn.q_proj.bias"
    made.tensors[name] = np.zeros(64, np.float32)
    made.tensors["model.zzz"] = np.zeros(64, np.float32)
    assert f"tensor {name} (and 1 more) is not part of" in refusal(made, tmp_path)


def test_experts_of_a_layer_must_agree(tmp_path: Path) -> None:
    made = pub.mixtral()
    name = "model.layers.0.block_sparse_moe.experts.2.w3.weight"
    made.tensors[name] = made.tensors[name].astype(np.float32)
    message = refusal(made, tmp_path)
    assert name in message and "must agree" in message


def test_types_that_cannot_be_stored_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pub.CODES, np.dtype("<f8"), "F64")
    made = pub.llama()
    name = "model.layers.0.mlp.up_proj.weight"
    made.tensors[name] = made.tensors[name].astype(np.float64)
    message = refusal(made, tmp_path)
    assert name in message and "F64" in message


@pytest.mark.parametrize("bits", [4, None])
def test_mlx_layout_has_other_names_and_no_offset(bits: int | None, tmp_path: Path) -> None:
    original = pub.qwen3_5_moe()
    hf = recipe(original, tmp_path / "hf")
    mlx = recipe(as_mlx(original, bits), tmp_path / "mlx", by="mlx")
    assert (hf.shape.norm_offset, mlx.shape.norm_offset) == (1, 0)
    assert [(t.target, t.shape, t.role) for t in mlx.trunk] == [
        (t.target, t.shape, t.role) for t in hf.trunk
    ]
    assert mlx.quantized is (bits is not None)
    gate, _, down = mlx.layers[0].projections()
    assert "switch_mlp.gate_proj" in gate.tensor(3) and gate.start(3) == 3 * 64
    assert down.start(3) == 3 * 64
    if bits is not None:
        assert down.form != gate.form, "the override of layer 0"


def test_a_hybrid_without_delta_net_goes_by_who_wrote_it(tmp_path: Path) -> None:
    made = pub.qwen3_5_moe(full_attention_interval=1)
    assert recipe(made, tmp_path / "hf").shape.norm_offset == 1
    assert recipe(as_mlx(made), tmp_path / "mlx", by="mlx").shape.norm_offset == 0


def test_qwen3_next_projections_are_taken_apart(tmp_path: Path) -> None:
    """The rows by transformers' own words: per key head q, k, v of its heads, z of its heads."""
    trunk = {tensor.target: tensor for tensor in recipe(pub.qwen3_next(), tmp_path).trunk}
    q: list[int] = []
    k: list[int] = []
    v: list[int] = []
    z: list[int] = []
    row = 0
    for _ in range(2):
        for part, rows in ((q, 16), (k, 16), (v, 2 * 32), (z, 2 * 32)):
            part += range(row, row + rows)
            row += rows
    b, a = [0, 1, 4, 5], [2, 3, 6, 7]
    block = "layers.1.linear_attn."
    for name, expected in (("qkv", q + k + v), ("z", z), ("b", b), ("a", a)):
        tensor = trunk[f"{block}in_proj_{name}.weight"]
        assert tensor.order is not None and tensor.order.tolist() == expected
        fused = "in_proj_ba" if name in "ab" else "in_proj_qkvz"
        assert tensor.source == f"model.{block}{fused}.weight"
        assert tensor.shape == (len(expected), 64)


def test_qwen3_next_may_be_split_already(tmp_path: Path) -> None:
    hybrid = pub.qwen3_5_moe()
    made = Published(pub.qwen3_next().config)
    for name, array in hybrid.tensors.items():
        if "language_model" in name or name == "lm_head.weight":
            made.tensors[name.replace("model.language_model.", "model.")] = array
    trunk = {tensor.target: tensor for tensor in recipe(made, tmp_path).trunk}
    assert trunk["layers.0.linear_attn.in_proj_qkv.weight"].order is None


def test_slices_of_a_dense_model(tmp_path: Path) -> None:
    made = recipe(pub.llama(), tmp_path, slices=4, group=64)
    assert (made.shape.experts.count, made.shape.experts.intermediate) == (4, 128)
    gate, _, down = made.layers[0].projections()
    assert (gate.start(3), gate.rows, gate.inputs(3)) == (384, 128, None)
    assert (down.start(3), down.rows, down.inputs(3)) == (0, 64, (384, 512))


@pytest.mark.parametrize(
    ("slices", "group", "named"),
    [(3, 1, "--slices 1, 2, 4, 8, 16, 32"), (8, 128, "--slices 1, 2, 4"), (0, 64, "--slices 1")],
)
def test_slices_that_do_not_fit_name_those_that_do(
    slices: int, group: int, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError) as caught:
        recipe(pub.llama(), tmp_path, slices=slices, group=group)
    assert named in str(caught.value)


def test_a_sparse_model_has_no_slices(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="leave out --slices"):
        recipe(pub.mixtral(), tmp_path, slices=8)


def test_gguf_llama(tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(pub.llama(), tmp_path / "m.gguf", "Q4_1")) as checkpoint:
        made = recipe_of(checkpoint)
    expected = EXPECTED["llama"]
    assert (made.shape.attention, made.shape.experts) == (expected[0], expected[2])
    assert made.shape.tied_head and made.quantized
    assert math.isclose(made.shape.norm_eps, 1e-5, rel_tol=1e-6)
    trunk = {tensor.target: tensor for tensor in made.trunk}
    order = trunk["layers.0.self_attn.k_proj.weight"].order
    assert order is not None
    assert order.tolist()[:16] == [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15]
    assert trunk["layers.0.self_attn.v_proj.weight"].order is None
    assert trunk["norm.weight"].form == Plain("F32")


GGUF_REFUSED = [
    ({"rope.scaling.type": "yarn"}, "rope.scaling.type is 'yarn'"),
    ({"rope.scaling.factor": 8.0}, "rope.scaling.factor is 8.0"),
    ({"expert_count": 8}, "expert_count is 8"),
    ({"attention.value_length": 8}, "attention.value_length is 8"),
    ({"attention.sliding_window": 4096}, "attention.sliding_window is 4096"),
    ({"vocab_size": 7}, "token_embd.weight has shape"),
]


@pytest.mark.parametrize(("fields", "named"), GGUF_REFUSED, ids=lambda value: str(value)[:30])
def test_gguf_fields_that_change_the_maths(
    fields: dict[str, Any], named: str, tmp_path: Path
) -> None:
    path = write_gguf(pub.llama(), tmp_path / "m.gguf", **fields)
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError) as caught:
        recipe_of(checkpoint)
    assert named in str(caught.value)


def test_gguf_tensors_and_arch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pub.llama(tie_word_embeddings=False)
    with open_checkpoint(write_gguf(made, tmp_path / "untied.gguf")) as checkpoint:
        assert not recipe_of(checkpoint).shape.tied_head
        checkpoint.fields["general.architecture"] = "qwen35moe"
        with pytest.raises(CheckpointError, match="'qwen35moe' is not supported"):
            recipe_of(checkpoint)
    monkeypatch.setitem(GGUF_NAMES, "rope_freqs", "rope_freqs")
    made.tensors["model.rope_freqs.weight"] = np.ones(8, np.float32)
    with (
        open_checkpoint(write_gguf(made, tmp_path / "freqs.gguf")) as checkpoint,
        pytest.raises(CheckpointError, match=r"rope_freqs\.weight"),
    ):
        recipe_of(checkpoint)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Checkpoint]]:
    root = tmp_path_factory.mktemp("families")
    made = {name: open_checkpoint(build().write(root / name)) for name, build in FAMILIES.items()}
    made["gguf"] = open_checkpoint(write_gguf(pub.llama(), root / "m.gguf"))
    yield made
    for checkpoint in made.values():
        checkpoint.close()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_value_of_any_key_is_used_or_refused(
    data: st.DataObject, checkpoints: dict[str, Checkpoint]
) -> None:
    """Whatever a config says, the answer is a recipe or an error of ours, and soon."""
    checkpoint = checkpoints[data.draw(st.sampled_from(sorted(checkpoints)))]
    gguf = checkpoint.kind == "gguf"
    whole = checkpoint.fields if gguf else checkpoint.config
    before = copy.deepcopy(whole)
    inner: dict[str, Any] = whole.get("text_config", whole)
    keys = sorted(key for key in inner if not gguf or key.startswith("llama."))
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3)):
        inner[key] = data.draw(JSON)
    try:
        recipe_of(checkpoint)
    except FlashMoeError as error:
        assert str(checkpoint.path) in str(error) or "slices" in str(error)
    finally:
        whole.clear()
        whole.update(before)
