"""The dimensions of published models, and the resident tensors that a model of a shape has.

Source: transformers 5.23 ``Qwen3_5MoeTextConfig`` (35B-A3B) and the published config of
Qwen3.5-397B-A17B. Of the 122B-A10B the shared width and the delta net's dimensions are inferred
from its relatives.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashmoe.quant import Affine, Format, Plain
from flashmoe.shape import AttentionShape, ExpertsShape, Mixer, ModelShape, RecurrentShape
from flashmoe.store.layout import TrunkTensor

GROUP = 64
TRUNK_BITS = 4
ROUTER_BITS = 8
"""As ``convert`` does: the router and the shared expert's gate keep 8 bits."""

ATTENTION_EVERY = 4


@dataclass(frozen=True)
class Size:
    """What differs between the models of this family; ``keys`` and ``values`` are heads."""

    hidden: int
    layers: int
    experts: int
    top_k: int
    intermediate: int
    heads: int
    keys: int
    values: int
    vocabulary: int = 248320
    context_tokens: int = 262144


SIZES = {
    "qwen3.5-35b-a3b": Size(2048, 40, 256, 8, 512, heads=16, keys=16, values=32),
    "qwen3.5-122b-a10b": Size(3072, 48, 256, 8, 1024, heads=32, keys=16, values=64),
    "qwen3.5-397b-a17b": Size(4096, 60, 512, 10, 1024, heads=32, keys=16, values=64),
    "tiny": Size(256, 4, 16, 4, 64, heads=4, keys=2, values=4, vocabulary=2048,
                 context_tokens=4096),
}  # fmt: skip


def model_shape(name: str, layers: int | None = None) -> ModelShape:
    """The shape of a model, cut or stretched to ``layers``."""
    size = SIZES[name]
    mixers: list[Mixer] = [
        "recurrent" if (layer + 1) % ATTENTION_EVERY else "attention"
        for layer in range(size.layers if layers is None else layers)
    ]
    attention = AttentionShape(size.heads, 2, 256, 64, 1e7, gated=True, qk_norm=True)
    return ModelShape(
        family="qwen3_5_moe",
        hidden=size.hidden,
        vocabulary=size.vocabulary,
        mixers=tuple(mixers),
        attention=attention if "attention" in mixers else None,
        recurrent=RecurrentShape(size.keys, size.values, 128, 128, 4),
        experts=ExpertsShape(
            size.experts, size.top_k, size.intermediate, "softmax", True, size.intermediate
        ),
        norm_eps=1e-6,
        norm_offset=1,
        tied_head=False,
        max_context_tokens=size.context_tokens,
    )


def trunk_tensors(shape: ModelShape) -> tuple[TrunkTensor, ...]:
    """Every resident tensor with its format, in the order of conversion."""
    tensors = [_matrix("embed_tokens", shape.vocabulary, shape.hidden)]
    for layer, mixer in enumerate(shape.mixers):
        name = f"layers.{layer}"
        tensors.append(_vector(f"{name}.input_layernorm.weight", shape.hidden))
        tensors.append(_vector(f"{name}.post_attention_layernorm.weight", shape.hidden))
        tensors += _attention(shape, name) if mixer == "attention" else _recurrent(shape, name)
        tensors += _feed_forward(shape, f"{name}.mlp")
    tensors.append(_vector("norm.weight", shape.hidden))
    tensors.append(_matrix("lm_head", shape.vocabulary, shape.hidden))
    return tuple(tensors)


def _attention(shape: ModelShape, layer: str) -> list[TrunkTensor]:
    assert shape.attention is not None
    a, hidden, name = shape.attention, shape.hidden, f"{layer}.self_attn"
    return [
        _matrix(f"{name}.q_proj", 2 * a.heads * a.head_dim, hidden),
        _matrix(f"{name}.k_proj", a.kv_heads * a.head_dim, hidden),
        _matrix(f"{name}.v_proj", a.kv_heads * a.head_dim, hidden),
        _matrix(f"{name}.o_proj", hidden, a.heads * a.head_dim),
        _vector(f"{name}.q_norm.weight", a.head_dim),
        _vector(f"{name}.k_norm.weight", a.head_dim),
    ]


def _recurrent(shape: ModelShape, layer: str) -> list[TrunkTensor]:
    assert shape.recurrent is not None
    r, hidden, name = shape.recurrent, shape.hidden, f"{layer}.linear_attn"
    width = r.value_heads * r.value_dim
    return [
        _matrix(f"{name}.in_proj_qkv", r.conv_channels, hidden),
        _matrix(f"{name}.in_proj_z", width, hidden),
        _matrix(f"{name}.in_proj_b", r.value_heads, hidden),
        _matrix(f"{name}.in_proj_a", r.value_heads, hidden),
        _vector(f"{name}.conv1d.weight", r.conv_channels, r.conv_kernel),
        TrunkTensor(f"{name}.A_log", Plain("F32"), (r.value_heads,)),
        _vector(f"{name}.dt_bias", r.value_heads),
        _vector(f"{name}.norm.weight", r.value_dim),
        _matrix(f"{name}.out_proj", hidden, width),
    ]


def _feed_forward(shape: ModelShape, name: str) -> list[TrunkTensor]:
    experts, hidden = shape.experts, shape.hidden
    width, shared = experts.shared_intermediate, f"{name}.shared_expert"
    return [
        _matrix(f"{name}.gate", experts.count, hidden, ROUTER_BITS),
        _matrix(f"{shared}.gate_proj", width, hidden),
        _matrix(f"{shared}.up_proj", width, hidden),
        _matrix(f"{shared}.down_proj", hidden, width),
        _matrix(f"{shared}_gate", 1, hidden, ROUTER_BITS),
    ]


def _matrix(name: str, rows: int, columns: int, bits: int = TRUNK_BITS) -> TrunkTensor:
    form: Format = Affine(bits, GROUP)
    return TrunkTensor(f"{name}.weight", form, (rows, columns))


def _vector(name: str, *extent: int) -> TrunkTensor:
    return TrunkTensor(name, Plain("BF16"), extent)
