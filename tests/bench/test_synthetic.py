"""``bench/synthetic.py``: a store that is whole and computes, and the same weights as GGUF."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from flashmoe import quant
from flashmoe.engine import Engine
from flashmoe.options import Runtime
from flashmoe.quant import Affine
from flashmoe.store.reader import Store
from flashmoe.store.verify import verify

SCRIPT = Path(__file__).parents[2] / "bench" / "synthetic.py"
KEY_HEADS, RATIO, DIM = 2, 2, 128  # tiny's delta net
NAMES = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
}
"""SPEC 2.5: ours to llama.cpp's."""


def synthesize(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    done = synthesize("tiny", "--out", folder / "store", "--gguf", folder / "model.gguf")
    assert done.returncode == 0, done.stderr
    return folder


def test_it_opens_verifies_and_computes(made):
    report = verify(made / "store")
    assert report.records_checked == 64 and not report.faults
    with Engine.open(made / "store", runtime=Runtime(profile=False)) as engine:
        logits = engine.session().logits(list(range(100, 180)))
        assert np.isfinite(logits).all() and 0.3 < logits.std() < 3
        assert len(set(logits.argmax(axis=1).tolist())) > 40  # tokens differ in what they say
        assert engine.tokenizer.vocab_size == engine.shape.vocabulary
        assert engine.tokenizer.decode(engine.tokenizer.encode("hello, world")) == "hello, world"


def test_weights_are_of_the_size_that_keeps_activations(made):
    store = Store.open(made / "store")
    weights = quant.dequantize(store.trunk()["layers.0.linear_attn.in_proj_qkv.weight"])
    assert weights.std() * math.sqrt(256) == pytest.approx(1, abs=0.03)
    assert abs(weights.mean()) < 0.01 * weights.std()


def test_the_same_command_gives_the_same_bytes(made, tmp_path):
    assert synthesize("tiny", "--out", tmp_path / "store").returncode == 0
    for path in (made / "store").iterdir():
        assert path.read_bytes() == (tmp_path / "store" / path.name).read_bytes(), path.name


def test_distinct_files_serve_all_layers_by_hard_links(tmp_path):
    done = synthesize("tiny", "--layers", 6, "--distinct", 4, "--out", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    assert "4 distinct layer files serve all 6 layers" in done.stderr
    nodes = [os.stat(tmp_path / "store" / f"layer-00{n}.safetensors").st_ino for n in range(6)]
    assert len(set(nodes)) == 4 and nodes[4:] == nodes[:2]
    assert not verify(tmp_path / "store").faults
    assert Store.open(tmp_path / "store").manifest.source["distinct"] == 4
    assert json.loads(done.stdout)["distinct"] == 4


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_other_widths(tmp_path, bits):
    assert synthesize("tiny", "--bits", bits, "--out", tmp_path / "store").returncode == 0
    with Engine.open(tmp_path / "store") as engine:
        assert engine.store.layout(0).gate == Affine(bits, 64)
        logits = engine.session().logits([5, 6, 7])
        assert np.isfinite(logits).all() and 0.3 < logits.std() < 3


def busiest_quarter(path: Path) -> float:
    """Share of activations that the busiest quarter of the experts takes."""
    from flashmoe.model.observer import Observer

    counts = np.zeros((4, 16), int)

    class Count(Observer):
        def routed(self, layer, ids):
            np.add.at(counts[layer], ids.ravel(), 1)

    with Engine.open(path, observer=Count()) as engine:
        engine.session().logits(np.random.default_rng(0).integers(0, 2048, 400).tolist())
    return float(np.sort(counts.ravel())[-16:].sum() / counts.sum())


def test_skew_makes_some_experts_popular(made, tmp_path):
    assert synthesize("tiny", "--skew", 1, "--out", tmp_path / "store").returncode == 0
    assert busiest_quarter(made / "store") < 0.32 < 0.38 < busiest_quarter(tmp_path / "store")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--distinct", "9"), "--distinct is from 1 to the 4 layers"),
        (("--bits", "8", "--gguf", "x.gguf"), "--gguf holds 4 bits"),
        (("--layers", "3", "--gguf", "x.gguf"), "give 4 layers or more"),
        (("--layers", "0"), "--layers is from 1"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path, arguments, message):
    done = synthesize("tiny", "--out", tmp_path / "store", *arguments)
    assert done.returncode and message in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_directory_in_use_and_a_full_disk_are_refused(made, tmp_path):
    done = synthesize("tiny", "--out", made / "store")
    assert done.returncode and "is not an empty directory" in done.stderr
    many = ("--layers", 4096, "--out", tmp_path / "store")
    done = synthesize("qwen3.5-397b-a17b", *many)  # 15 TB
    assert done.returncode and "are needed below" in done.stderr
    assert not (tmp_path / "store").exists()


def value_head_order(values: np.ndarray) -> np.ndarray:
    """llama.cpp's order of the value heads on axis 0: head j * Hk + k is published k * r + j."""
    heads = values.reshape(KEY_HEADS * RATIO, -1, *values.shape[1:])
    moved = np.empty_like(heads)
    for key in range(KEY_HEADS):
        for turn in range(RATIO):
            moved[turn * KEY_HEADS + key] = heads[key * RATIO + turn]
    return moved.reshape(values.shape)


def recurrent(name: str, values: np.ndarray) -> np.ndarray:
    """What llama.cpp's converter makes of a tensor of the delta net."""
    if name in ("in_proj_qkv", "conv1d"):
        keys = 2 * KEY_HEADS * DIM
        return np.concatenate([values[:keys], value_head_order(values[keys:])])
    if name == "out_proj":
        return value_head_order(values.T).T
    if name == "norm":
        return values
    values = value_head_order(values)
    return -np.exp(values) if name == "A_log" else values


def expected(store: Store) -> dict[str, np.ndarray]:
    """Every tensor of the GGUF, from the store's own bytes and the published recipe."""
    found = {}
    for name, matrix in store.trunk().items():
        values = quant.dequantize(matrix)
        layer, _, rest = name.removeprefix("layers.").partition(".")
        if not name.startswith("layers."):
            layer, rest = "", name
        if "linear_attn." in rest:
            values = recurrent(rest.split(".")[1], values)
        elif rest.endswith("norm.weight"):
            values = values + np.float32(1)
        found[f"blk.{layer}.{NAMES[rest]}" if layer else NAMES[rest]] = values
    return found


def test_the_gguf_holds_the_same_weights(made):
    store = Store.open(made / "store")
    reader = gguf.GGUFReader(made / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    wanted = expected(store)
    for layer in range(4):
        for name in ("gate", "up", "down"):
            experts = []
            for expert in range(16):
                at = store.record(layer, expert)
                raw = np.fromfile(at.path, np.uint8, at.nbytes, offset=at.offset)
                matrix = getattr(store.layout(layer).expert(raw), name)
                experts.append(quant.dequantize(matrix))
            wanted[f"blk.{layer}.ffn_{name}_exps.weight"] = np.stack(experts)
    assert set(tensors) == set(wanted)
    for name, tensor in tensors.items():
        found = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(found.ravel(), wanted[name].ravel()), name
        assert tensor.shape.tolist() == list(wanted[name].squeeze().shape)[::-1], name
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert kinds["blk.0.ffn_gate_exps.weight"] == kinds["output.weight"] == "Q4_0"
    assert kinds["blk.0.ffn_gate_inp.weight"] == kinds["blk.0.ssm_a"] == "F32"


def test_the_gguf_says_what_it_is(made):
    fields = gguf.GGUFReader(made / "model.gguf").fields
    values = {name: field.contents() for name, field in fields.items()}
    assert values["general.architecture"] == "qwen35moe"
    assert values["qwen35moe.block_count"] == 4
    assert values["qwen35moe.expert_used_count"] == 4
    assert values["qwen35moe.ssm.inner_size"] == KEY_HEADS * RATIO * DIM
    assert len(values["tokenizer.ggml.tokens"]) == 2048
