"""How often replies are valid, bound and not: tool calls and JSON at temperature 1, by store.

    .venv/bin/python bench/validity.py unpack SmolLM2.gguf CHECKPOINT
    .venv/bin/flashmoe convert CHECKPOINT store-3 --bits 3 --group 32
    .venv/bin/python bench/validity.py ask store-4 store-3 store-2 [--requests 200] [--save]

`ask` makes its requests from lists, so that no file is needed, each with a seed of its own, the
same on both sides, and each behind one that was answered well, for the free side's sake. Bound and
free differ in nothing but the grammar. Valid is what came to its end within `--max-tokens`, is
calls or one JSON value and nothing else, and what jsonschema accepts. A reply that is hopeless,
whatever may follow, is ended there. Schemas bound every text and number, so that a bound reply has
an end however a model draws; the table says how many were cut. Each store is asked in processes of
one thread, one a core: no answer depends on either.
`unpack` writes a llama GGUF file as plain safetensors, from which `flashmoe convert --bits` makes
stores of other widths (a quantised GGUF file is otherwise kept as it is).
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import results
from command import run, whole
from safetensors.numpy import save_file

from flashmoe import Budget, Engine, PrefixCache, Runtime
from flashmoe.quant import dequantize
from flashmoe.store.checkpoint import Checkpoint, open_checkpoint
from flashmoe.text import Call, Content
from flashmoe.turn import JsonSchema, Reply, Turn

SIDES = ("bound", "free")
COUNTS = ("valid", "cut", "tokens")

TEXT = {"type": "string", "maxLength": 40}
NUMBER = {"type": "integer", "minimum": -10000, "maximum": 10000}
TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {"city": TEXT, "day": {"enum": ["today", "tomorrow"]}},
    "set_alarm": {"hour": {"type": "integer", "minimum": 0, "maximum": 23}, "label": TEXT},
    "send_letter": {"to": TEXT, "body": {"type": "string", "maxLength": 80}},
    "add": {"a": NUMBER, "b": NUMBER},
    "book": {
        "name": TEXT,
        "seats": {"type": "integer", "minimum": 1, "maximum": 12},
        "wishes": {"type": "array", "items": TEXT, "maxItems": 2},
    },
}
ASKED = (
    "What is the weather in {place} {day}?",
    "Wake me at {hour} o'clock, please: {thing}.",
    "Write to {person} that the {thing} is ready.",
    "How much is {hour} plus {number}?",
    "A table for {number} in the name of {person}, near the window.",
)
CALLED = (
    "Write to Harriet that the cake is ready.",
    {"name": "send_letter", "arguments": {"to": "Harriet", "body": "The cake is ready."}},
    "The letter is on its way.",
)
"""What was asked before, the call, and what came of it."""
FORMS: dict[str, dict[str, Any]] = {
    "Describe {person}, who sells {thing}s in {place}.": {
        "name": TEXT,
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "trade": TEXT,
    },
    "Is a {thing} heavier than {number} stones?": {
        "answer": {"type": "boolean"},
        "reason": {"type": "string", "maxLength": 80},
    },
    "Name some things to do in {place}.": {
        "place": TEXT,
        "things": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 3},
    },
    "Where is {place}, and how warm is it {day}?": {
        "where": {
            "type": "object",
            "properties": {"country": TEXT, "continent": TEXT},
            "required": ["country"],
        },
        "celsius": {"type": ["integer", "null"], "minimum": -60, "maximum": 60},
        "day": {"type": "string", "format": "date"},
    },
}
ANSWERED: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "Describe Mr Weston, who sells horses in York.",
        {"name": "Mr Weston", "age": 52, "trade": "horses"},
    ),
    ("Is a horse heavier than 10 stones?", {"answer": True, "reason": "A horse weighs more."}),
    ("Name some things to do in York.", {"place": "York", "things": ["Walk on the walls"]}),
    (
        "Where is York, and how warm is it today?",
        {"where": {"country": "England", "continent": "Europe"}, "celsius": 14,
         "day": "2024-05-01"},
    ),
)  # fmt: skip
"""What was asked of each form before, and the answer."""
WORDS = {
    "place": ("Paris", "Highbury", "Lima", "Osaka", "Bath"),
    "day": ("today", "tomorrow"),
    "hour": ("6", "7", "21"),
    "thing": ("clock", "carriage", "lamp"),
    "person": ("Emma", "Mr Knightley"),
    "number": ("4", "35"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    ask = commands.add_parser("ask")
    ask.add_argument("stores", nargs="+")
    ask.add_argument("--requests", type=whole(), default=200, help="of each kind")
    ask.add_argument("--max-tokens", type=whole(), default=400)
    ask.add_argument("--jobs", type=whole(), default=os.cpu_count())
    results.add_arguments(ask)
    unpack = commands.add_parser("unpack")
    unpack.add_argument("source", type=Path)
    unpack.add_argument("directory", type=Path)
    given = parser.parse_args()
    if given.command == "unpack":
        unpacked(given.source, given.directory)
        return
    began, line = time.perf_counter(), dict[str, Any]()
    # Threads of a forked process would be lost.
    workers = ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn"))
    with workers:
        asked = {
            (store, kind): workers.submit(figures, store, kind, given.requests, given.max_tokens)
            for store, kind in itertools.product(given.stores, KINDS)
        }
        print("| store | requests | valid, bound | valid, free | cut, bound | cut, free |")
        print("|---|---|---|---|---|---|")
        for (store, kind), found in asked.items():
            name = Path(store).name  # what is kept has no path
            line.setdefault(name, {})[kind] = sides = found.result()
            cells = (f"{sides[side][key]}" for key in COUNTS[:2] for side in SIDES)
            print(f"| {name} | {given.requests} {kind} | {' | '.join(cells)} |", flush=True)
    line = {"requests": given.requests, "stores": line, "seconds": time.perf_counter() - began}
    print(json.dumps(line))
    results.save_if_asked(given, "validity", line, {"max_tokens": given.max_tokens})


def figures(store: str, kind: str, requests: int, most: int) -> dict[str, dict[str, int]]:
    """The counts of each side of so many requests."""
    counts = {side: dict.fromkeys(COUNTS, 0) for side in SIDES}
    with Engine.open(
        store,
        budget=Budget(ram_bytes=1 << 30, context_tokens=2048),
        runtime=Runtime(profile=False, threads=1),
        prefix_cache=PrefixCache(memory_bytes=256 << 20),
        grammars=True,
    ) as engine:
        for seed in range(requests):
            for side in SIDES:
                turn, hopeless, valid = KINDS[kind](seed, bound=side == "bound")
                text, calls, finish, tokens = replied(engine, turn, seed, most, hopeless)
                counts[side]["cut"] += finish == "length"
                counts[side]["tokens"] += tokens
                counts[side]["valid"] += finish in ("stop", "tool_calls") and valid(text, calls)
    return counts


def replied(
    engine: Engine, turn: Turn, seed: int, most: int, hopeless: Callable[[str], bool]
) -> tuple[str, list[Call], str | None, int]:
    """A reply's text and calls, why it ended (None: it was hopeless) and its tokens."""
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    sampling = engine.sampling(**plain, seed=seed, max_tokens=most)
    reply = Reply(engine, engine.session(), turn, sampling)
    text, calls = "", list[Call]()
    for beat in reply:
        for piece in beat.pieces:
            text += piece.text if isinstance(piece, Content) else ""
            calls += [piece] if isinstance(piece, Call) else []
        if hopeless(text):
            reply.close()
            break
    return text, calls, reply.finish_reason, reply.usage.completion_tokens


def a_call(seed: int, *, bound: bool) -> tuple[Turn, Callable[..., bool], Callable[..., bool]]:
    """A call that is demanded, and nothing but that."""
    schemas = {name: listed(properties) for name, properties in TOOLS.items()}
    tools = tuple(
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in schemas.items()
    )
    question, called, came = CALLED
    messages = (
        {"role": "user", "content": question},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": called}],
        },
        {"role": "tool", "content": came},
        {"role": "user", "content": filled(ASKED[seed % len(ASKED)], seed)},
    )
    turn = Turn(
        messages,
        tools,
        tool_choice="required" if bound else "auto",
        parallel_calls=False,
        thinking=False,
        constrained=bound,
    )

    def valid(text: str, calls: list[Call]) -> bool:
        (call,) = calls or [None]
        if text.strip() or call is None or call.name not in schemas:
            return False
        return fits(json.loads(call.arguments), schemas[call.name])

    return turn, lambda text: bool(text.strip()), valid


def an_answer(seed: int, *, bound: bool) -> tuple[Turn, Callable[..., bool], Callable[..., bool]]:
    """An answer by a schema that the prompt names too."""
    question, properties = list(FORMS.items())[seed % len(FORMS)]
    asked, answered = ANSWERED[seed % len(FORMS)]
    schema = listed(properties)
    system = f"Answer with JSON alone, by this schema: {json.dumps(schema)}"
    messages = (
        {"role": "system", "content": system},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": json.dumps(answered)},
        {"role": "user", "content": filled(question, seed)},
    )

    def valid(text: str, calls: list[Call]) -> bool:
        try:
            return fits(json.loads(text), schema)
        except ValueError:
            return False

    form = JsonSchema(schema) if bound else None
    return Turn(messages, thinking=False, form=form), no_object, valid


KINDS = {"tool calls": a_call, "answers": an_answer}


def no_object(text: str) -> bool:
    """Whether nothing that follows makes an object of it."""
    begun = text.lstrip()
    if not begun.startswith("{"):
        return bool(begun)
    try:
        _, end = json.JSONDecoder().raw_decode(begun)
    except ValueError:
        return False
    return bool(begun[end:].strip())


def listed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def filled(template: str, seed: int) -> str:
    """A question with words drawn by its number."""
    drawn = np.random.default_rng(seed)
    return template.format(**{name: drawn.choice(words) for name, words in WORDS.items()})


def fits(value: object, schema: Any) -> bool:
    try:
        jsonschema.validate(
            value, schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
    except jsonschema.ValidationError:
        return False
    return True


def unpacked(source: Path, directory: Path) -> None:
    """A llama GGUF file as a Hugging Face checkpoint in float16."""
    directory.mkdir(parents=True, exist_ok=True)
    with open_checkpoint(source) as checkpoint:
        fields = checkpoint.fields
        config = config_of(fields)
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
        tensors = dict(plain(checkpoint, heads))
        config["tie_word_embeddings"] = "lm_head.weight" not in tensors
        (directory / "config.json").write_text(json.dumps(config))
        for name, text in checkpoint.text_files.items():
            (directory / name).write_bytes(text if isinstance(text, bytes) else text.read_bytes())
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def config_of(fields: dict[str, Any]) -> dict[str, Any]:
    def value(name: str) -> Any:
        return fields[f"llama.{name}"]

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "rms_norm_eps": float(value("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(fields.get("llama.rope.freq_base", 10000.0)),
        "max_position_embeddings": value("context_length"),
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_act": "silu",
        "torch_dtype": "float16",
    }


NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def plain(checkpoint: Checkpoint, heads: dict[str, int]) -> Iterator[tuple[str, Any]]:
    for name, tensor in checkpoint.tensors.items():
        parts = name.removesuffix(".weight").split(".")
        rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
        values = dequantize(checkpoint.rows(name, 0, rows)).reshape(tensor.shape)
        if count := heads.get(parts[-1]):  # llama.cpp turns pairs, Hugging Face halves
            values = values.reshape(count, -1, 2, tensor.shape[-1]).swapaxes(1, 2)
            values = values.reshape(tensor.shape)
        layer = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        yield f"{layer}{NAMES[parts[-1]]}.weight", values.astype(np.float16)


if __name__ == "__main__":
    run(main)
