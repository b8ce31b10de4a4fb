"""The weights of a synthetic store as a GGUF file of architecture ``qwen35moe``, for llama.cpp.

Owns names, the order of heads and the layout of Q4_0 blocks. A group of 64 codes whose bias is
-8 scales is two blocks of that scale; a BF16 scale of these sizes is an F16 number exactly. What
Q4_0 cannot hold (router, norms, conv, decays) is F32.

What llama.cpp's converter does to Qwen3.5, and so is done here: norms but the delta net's are
1 + w; ``ssm_a`` is -exp(A_log); value heads are laid out so that head ``j * Hk + k`` is the
published head ``k * r + j``, in everything that has value heads.

Invariant: every weight equals the store's, and memory holds a few records and one tensor piece.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from synthetic_shapes import ATTENTION_EVERY, trunk_tensors
from synthetic_store import in_order, to_disk, vocabulary_of

from flashmoe import quant
from flashmoe.quant import Affine, Array, Matrix
from flashmoe.shape import ModelShape, RecurrentShape
from flashmoe.store.layout import PROJECTIONS, TRUNK, trunk_header
from flashmoe.store.reader import Store, read_exactly

ALIGNMENT = 32
PIECE_ROWS = 16384
"""Rows of a tensor converted at once, where they keep their order."""

LOW = np.uint64(0x0F0F0F0F0F0F0F0F)
ENDS = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
    "ffn_gate_shexp.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_expert.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_expert.down_proj.weight",
}
ATTENTION = {
    f"{theirs}.weight": f"self_attn.{ours}.weight"
    for theirs, ours in {
        "attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj",
        "attn_q_norm": "q_norm", "attn_k_norm": "k_norm",
    }.items()
}  # fmt: skip
RECURRENT = {
    "attn_qkv.weight": "linear_attn.in_proj_qkv.weight",
    "attn_gate.weight": "linear_attn.in_proj_z.weight",
    "ssm_beta.weight": "linear_attn.in_proj_b.weight",
    "ssm_alpha.weight": "linear_attn.in_proj_a.weight",
    "ssm_conv1d.weight": "linear_attn.conv1d.weight",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_norm.weight": "linear_attn.norm.weight",
    "ssm_out.weight": "linear_attn.out_proj.weight",
}
EXPERTS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: type, shape as numpy has it, and whether it is made of experts."""

    name: str
    kind: Type
    shape: tuple[int, ...]
    source: str
    layer: int = -1

    @property
    def nbytes(self) -> int:
        """Its size, without the padding that follows."""
        elements, nbytes = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) * nbytes // elements


def entries(shape: ModelShape) -> list[Entry]:
    """Every tensor, in file order."""
    tensors = {tensor.name: tensor for tensor in trunk_tensors(shape)}

    def resident(name: str, source: str) -> Entry:
        tensor = tensors[source]
        q4 = isinstance(tensor.form, Affine) and tensor.form.bits == 4
        extent = tensor.shape[1:] if tensor.shape[0] == 1 else tensor.shape
        return Entry(name, Type.Q4_0 if q4 else Type.F32, extent, source)

    found = [resident(name, source) for name, source in ENDS.items()]
    experts, hidden = shape.experts, shape.hidden
    for layer, mixer in enumerate(shape.mixers):
        names = {**LAYER, **(ATTENTION if mixer == "attention" else RECURRENT)}
        for name, source in names.items():
            found.append(resident(f"blk.{layer}.{name}", f"layers.{layer}.{source}"))
        for projection, name in EXPERTS.items():
            extent = (experts.intermediate, hidden)
            extent = extent[::-1] if projection == "down_proj" else extent
            whole = (experts.count, *extent)
            name = f"blk.{layer}.{name}.weight"
            found.append(Entry(name, Type.Q4_0, whole, projection, layer))
    return found


def gguf_bytes(shape: ModelShape) -> int:
    """Size of the tensors."""
    return sum(_padded(entry.nbytes) for entry in entries(shape))


def write_gguf(path: Path, store_path: Path, tell: Callable[[str], None]) -> None:
    """Write the store's weights to ``path``, which appears when it is whole."""
    store = Store.open(store_path)
    partial = path.with_name(f"{path.name}.partial")
    listed = entries(store.shape)
    start = _write_header(partial, store, listed)
    with partial.open("r+b") as file, (store_path / TRUNK).open("rb") as trunk:
        file.truncate(start + sum(_padded(entry.nbytes) for entry in listed))
        offsets: dict[tuple[int, str], int] = {}
        for entry in listed:
            if entry.layer < 0:
                file.seek(start)
                for piece in _resident(store, trunk.fileno(), entry):
                    file.write(piece)
            else:
                offsets[entry.layer, entry.source] = start
            start += _padded(entry.nbytes)
        file.flush()
        for layer in range(store.shape.layers):
            _write_experts(file.fileno(), store, layer, offsets)
            to_disk(file)  # a file of many GB would fill the page cache
            tell(f"{path.name}: layer {layer} written")
    partial.rename(path)


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _write_header(path: Path, store: Store, listed: list[Entry]) -> int:
    """Metadata and places of tensors; returns where the first tensor begins."""
    writer = gguf.GGUFWriter(path, "qwen35moe")
    shape = store.shape
    writer.add_name("flashmoe synthetic, random weights")
    writer.add_uint32("general.file_type", gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_uint32("general.quantization_version", gguf.GGML_QUANT_VERSION)
    for key, value in _dimensions(shape).items():
        writer.add_uint32(f"qwen35moe.{key}", value)
    writer.add_float32("qwen35moe.attention.layer_norm_rms_epsilon", shape.norm_eps)
    writer.add_float32("qwen35moe.rope.freq_base", 1e7)
    writer.add_array("qwen35moe.rope.dimension_sections", [11, 11, 10, 0])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary_of(shape.vocabulary))
    writer.add_token_types([gguf.TokenType.NORMAL] * shape.vocabulary)
    writer.add_token_merges(["a b"])  # llama.cpp refuses an empty list
    writer.add_eos_token_id(shape.vocabulary - 1)
    writer.add_pad_token_id(shape.vocabulary - 1)
    writer.add_add_bos_token(False)
    for entry in listed:
        float32 = np.dtype(np.float32)
        writer.add_tensor_info(entry.name, entry.shape, float32, entry.nbytes, entry.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    end = int(writer.fout[0].tell())
    writer.close()
    return _padded(end)


def _dimensions(shape: ModelShape) -> dict[str, int]:
    experts, net = shape.experts, shape.recurrent
    found = {
        "block_count": shape.layers,
        "context_length": shape.max_context_tokens,
        "embedding_length": shape.hidden,
        "feed_forward_length": experts.intermediate,
        "expert_count": experts.count,
        "expert_used_count": experts.top_k,
        "expert_feed_forward_length": experts.intermediate,
        "expert_shared_feed_forward_length": experts.shared_intermediate,
        "full_attention_interval": ATTENTION_EVERY,
        "vocab_size": shape.vocabulary,
    }
    if shape.attention is not None:
        found |= {
            "attention.head_count": shape.attention.heads,
            "attention.head_count_kv": shape.attention.kv_heads,
            "attention.key_length": shape.attention.head_dim,
            "attention.value_length": shape.attention.head_dim,
            "rope.dimension_count": shape.attention.rope_dims,
        }
    if net is not None:
        found |= {
            "ssm.conv_kernel": net.conv_kernel,
            "ssm.state_size": net.key_dim,
            "ssm.group_count": net.key_heads,
            "ssm.time_step_rank": net.value_heads,
            "ssm.inner_size": net.value_heads * net.value_dim,
        }
    return found


def _resident(store: Store, descriptor: int, entry: Entry) -> Iterator[bytes]:
    """A trunk tensor as llama.cpp wants it, in pieces."""
    tensor = next(each for each in store.manifest.trunk if each.name == entry.source)
    order = _row_order(store.shape.recurrent, entry.source)
    step = PIECE_ROWS if order is None else tensor.shape[0]
    _, extents = trunk_header(store.manifest.trunk)
    for first in range(0, tensor.shape[0], step):
        rows = min(step, tensor.shape[0] - first)
        arrays: dict[str, Array] = {}
        for name, part in tensor.named_parts():
            row_bytes = part.nbytes // tensor.shape[0]
            raw = np.empty(rows * row_bytes, np.uint8)
            offset = extents[name][0] + first * row_bytes
            read_exactly(descriptor, raw, offset, store.path / TRUNK, name)
            arrays[part.suffix] = raw.view(part.numpy_dtype).reshape(rows, *part.shape[1:])
        matrix = quant.matrix(tensor.form, (rows, math.prod(tensor.shape[1:])), arrays)
        if order is not None:
            matrix = matrix.rows(order)
        if entry.source.endswith("linear_attn.out_proj.weight"):
            assert store.shape.recurrent is not None
            matrix = _columns_by_head(matrix, store.shape.recurrent)
        q4 = entry.kind == Type.Q4_0
        yield (blocks(matrix) if q4 else _floats(matrix, entry.source)).tobytes()


def _floats(matrix: Matrix, source: str) -> Array:
    """The F32 numbers of a tensor that is no Q4_0."""
    values = quant.dequantize(matrix)
    if source.endswith("A_log"):
        return -np.exp(values)
    if source.endswith("norm.weight") and "linear_attn" not in source:
        return values + np.float32(1)
    return values


def _value_heads(net: RecurrentShape) -> Array:
    """The published value head at each place."""
    return np.arange(net.value_heads).reshape(net.key_heads, -1).T.ravel()


def _row_order(net: RecurrentShape | None, source: str) -> Array | None:
    """The published row at each place; None where rows keep their order."""
    name = source.partition(".linear_attn.")[2]
    if net is None or not name or name.split(".")[0] in ("norm", "out_proj"):
        return None
    heads = _value_heads(net)
    if name.split(".")[0] in ("A_log", "dt_bias", "in_proj_a", "in_proj_b"):
        return heads
    rows = (heads[:, None] * net.value_dim + np.arange(net.value_dim)).ravel()
    if name == "in_proj_z.weight":
        return rows
    keys = 2 * net.key_heads * net.key_dim
    return np.concatenate([np.arange(keys), keys + rows])


def _columns_by_head(matrix: Matrix, net: RecurrentShape) -> Matrix:
    """The inputs of out_proj in llama.cpp's order of heads; a head is whole groups."""
    heads, rows = _value_heads(net), matrix.shape[0]
    assert matrix.scales is not None and matrix.biases is not None

    def taken(array: Array) -> Array:
        return array.reshape(rows, net.value_heads, -1)[:, heads].reshape(array.shape)

    parts = (matrix.weight, matrix.scales, matrix.biases)
    return Matrix(matrix.form, matrix.shape, *map(taken, parts))


def _write_experts(
    descriptor: int, store: Store, layer: int, offsets: dict[tuple[int, str], int]
) -> None:
    """The routed experts of a layer, each to its place in the three tensors."""
    layout, place = store.layout(layer), store.record(layer, 0).path
    source = os.open(place, os.O_RDONLY)

    def made(expert: int) -> tuple[int, tuple[Array, ...]]:
        address = store.record(layer, expert)
        record = np.empty(address.nbytes, np.uint8)
        read_exactly(source, record, address.offset, place, address.label)
        found = layout.expert(record)
        return expert, tuple(blocks(matrix) for matrix in (found.gate, found.up, found.down))

    try:
        for expert, projections in in_order(made, range(store.shape.experts.count)):
            for name, data in zip(PROJECTIONS, projections, strict=True):
                offset = offsets[layer, name] + expert * data.nbytes
                if os.pwrite(descriptor, data.data, offset) != data.nbytes:
                    raise OSError(f"expert {expert} of layer {layer} was not written whole")
    finally:
        os.close(source)


def blocks(matrix: Matrix) -> Array:
    """A 4-bit matrix of zero-centred groups as Q4_0: uint8 (rows, inputs / 32, 18).

    A block is its F16 scale and 16 bytes, byte j with code j below code j + 16; ours has codes
    2k and 2k + 1 in byte k.
    """
    assert matrix.scales is not None and matrix.biases is not None
    rows, columns = matrix.shape
    scales = matrix.scales.astype(np.float32)
    halves = scales.astype(np.float16)
    if not ((halves == scales).all() and (matrix.biases == matrix.scales * -8).all()):
        raise ValueError("a scale is no F16 number, or a bias is not -8 scales")
    words = np.ascontiguousarray(matrix.weight).view(np.uint64).reshape(rows, columns // 32, 2)
    low, high = words[..., 0], words[..., 1]
    even = (low & LOW) | ((high & LOW) << np.uint64(4))
    odd = ((low >> np.uint64(4)) & LOW) | (high & ~LOW)
    made = np.empty((rows, columns // 32, 18), np.uint8)
    repeated = np.repeat(halves, 2, axis=1)
    made[..., :2] = repeated.view(np.uint8).reshape(rows, columns // 32, 2)
    made[..., 2::2] = even[..., None].view(np.uint8)
    made[..., 3::2] = odd[..., None].view(np.uint8)
    return made
