"""An LLM from outside: SmolLM2-135M-Instruct, a Q4_1 GGUF, answers as it does in transformers.

transformers dequantises the same file to float32. The model is dense: here it runs as eight
slices a layer, each streamed like an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flashmoe import Budget, Engine, Sampling
from flashmoe.quant import Array
from flashmoe.store.convert import convert
from flashmoe.store.reader import Store
from tests.oracle.greedy import judge, tokens_that_differ, write_greedily
from tests.tolerances import PROMPT_LOGITS

pytestmark = pytest.mark.oracle

TOKENS = 64
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue? Answer in one sentence.",
    "Write the first lines of a story about a lighthouse keeper.",
)
TRUNK = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
SLICED = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}
HEADS = {"attn_q": 9, "attn_k": 3}


@pytest.fixture(scope="module")
def engine(smollm_store: Path) -> Iterator[Engine]:
    with Engine.open(smollm_store, budget=Budget(kv="f32")) as engine:
        yield engine


@pytest.fixture(scope="module")
def theirs(smollm_gguf: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        smollm_gguf.parent, gguf_file=smollm_gguf.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def prompts(engine: Engine, smollm_gguf: Path) -> list[list[int]]:
    """The questions in the model's own chat template, as ids; transformers must agree on them."""
    tokenizer = AutoTokenizer.from_pretrained(smollm_gguf.parent, gguf_file=smollm_gguf.name)
    prompts = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        ids = engine.tokenizer.encode_segments(engine.template.render(messages))
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        assert ids == encoded["input_ids"]
        prompts.append(ids)
    return prompts


@pytest.mark.parametrize("question", range(len(QUESTIONS)))
def test_greedy_continuation(
    engine: Engine,
    theirs: Any,
    prompts: list[list[int]],
    question: int,
    record_property: Callable[[str, object], None],
) -> None:
    """Token by token, and the same tokens as one prompt."""
    prompt = prompts[question]
    written = write_greedily(engine.session(), prompt, TOKENS)
    expected = judge(theirs, prompt, written)
    ids = written.argmax(axis=-1).tolist()
    whole = engine.session().logits([*prompt, *ids[:-1]])[-TOKENS:]
    for logits in (written, whole):
        # The prompt itself passes in one piece in both.
        difference = float(np.abs(logits - expected.logits).max())
        record_property("max_abs_difference", difference)
        assert difference <= PROMPT_LOGITS
        for note in tokens_that_differ(logits, expected):
            record_property("near_tie", note)


def test_the_capital_of_france(
    engine: Engine, prompts: list[list[int]], record_property: Callable[[str, object], None]
) -> None:
    sampling = Sampling(temperature=0, max_tokens=TOKENS)
    answer = "".join(step.text for step in engine.session().generate(prompts[0], sampling))
    record_property("answer", answer)
    assert "Paris" in answer


def test_slices_do_not_change_the_answer(
    engine: Engine,
    prompts: list[list[int]],
    smollm_gguf: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    convert(smollm_gguf, tmp_path / "store", slices=1)
    with Engine.open(tmp_path / "store", budget=Budget(kv="f32")) as whole:
        expected = whole.session().logits(prompts[0])
    difference = float(np.abs(engine.session().logits(prompts[0]) - expected).max())
    record_property("max_abs_difference", difference)
    assert difference <= PROMPT_LOGITS


def test_every_weight_is_gguf_s(
    smollm_gguf: Path, smollm_store: Path, stored_weights: Callable[[Store], dict[str, Array]]
) -> None:
    """To the last bit of what the format's own package dequantises."""
    found = stored_weights(Store.open(smollm_store))
    for tensor in gguf.GGUFReader(smollm_gguf).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        layer, kind = _parts(tensor.name)
        if kind in SLICED:
            pieces = [found.pop(f"{layer}experts.{e}.{SLICED[kind]}.weight") for e in range(8)]
            value = np.concatenate(pieces, axis=1 if kind == "ffn_down" else 0)
        else:
            value = found.pop(f"{layer}{TRUNK[kind]}.weight").reshape(expected.shape)
        if kind in HEADS:
            expected = _in_halves(expected, HEADS[kind])
        assert np.array_equal(value.view(np.uint32), expected.view(np.uint32)), tensor.name
    assert not found


def _parts(name: str) -> tuple[str, str]:
    """``blk.3.attn_q.weight`` to ``layers.3.`` and ``attn_q``."""
    *block, kind, _ = name.split(".")
    return (f"layers.{block[1]}." if block else ""), kind


def _in_halves(rows: Array, heads: int) -> Array:
    """Undo llama.cpp's order of a rotated projection, which pairs rows 2i and 2i + 1 of a head."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)
