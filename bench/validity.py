"""How often replies are valid, bound and not: tool calls and JSON by bits and experts a token.

    .venv/bin/python bench/validity.py smollm STORE … [--requests 200]
    .venv/bin/python bench/validity.py austen CASES STORE … [--experts-per-token 2] [--requests 60]
    .venv/bin/python bench/validity.py unpack SmolLM2.gguf DIRECTORY

`smollm`: tool calls and answers by a schema at temperature 1, each with a seed of its own; valid is
what jsonschema accepts. `austen`: the held-out requests of models/austen-moe, greedy; right is the
same tool with the same arguments. Requests are made here, from lists, so that no file is needed.
`unpack` writes a llama GGUF file as plain safetensors, from which `flashmoe convert --bits` makes
stores of other widths (a quantised GGUF file is otherwise kept as it is).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from command import run, whole
from safetensors.numpy import save_file

from flashmoe import Budget, Engine, Runtime, Sampling
from flashmoe.quant import dequantize
from flashmoe.store.checkpoint import Checkpoint, open_checkpoint
from flashmoe.text import Call, Content, ReplyParser, Syntax
from flashmoe.text.forms import JsonSchema

MOST_TOKENS = 400
SYSTEM = """You can call these functions:
<tools>
{tools}
</tools>
Answer with the name and the arguments of a function within <tool_call></tool_call>:
<tool_call>
{{"name": <name>, "arguments": <arguments>}}
</tool_call>"""

TEXT = {"type": "string", "maxLength": 60}
TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {"city": TEXT, "day": {"enum": ["today", "tomorrow"]}},
    "set_alarm": {"hour": {"type": "integer", "minimum": 0, "maximum": 23}, "label": TEXT},
    "send_letter": {"to": TEXT, "body": {"type": "string", "maxLength": 200}},
    "add": {"a": {"type": "number"}, "b": {"type": "number"}},
    "book": {
        "name": TEXT,
        "seats": {"type": "integer", "minimum": 1, "maximum": 12},
        "wishes": {"type": "array", "items": TEXT, "maxItems": 3},
    },
}
ASKED = (
    "What is the weather in {place} {day}?",
    "Wake me at {hour} o'clock, please: {thing}.",
    "Write to {person} that the {thing} is ready.",
    "How much is {hour} plus {number}?",
    "A table for {number} in the name of {person}, near the window.",
)
FORMS: dict[str, dict[str, Any]] = {
    "Describe {person}, who sells {thing}s in {place}.": {
        "name": TEXT,
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "trade": TEXT,
    },
    "Is a {thing} heavier than {number} stones?": {
        "answer": {"type": "boolean"},
        "reason": {"type": "string", "maxLength": 160},
    },
    "Name some things to do in {place}.": {
        "place": TEXT,
        "things": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 4},
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
    smollm = commands.add_parser("smollm")
    austen = commands.add_parser("austen")
    austen.add_argument("cases", type=Path)
    for command in (smollm, austen):
        command.add_argument("stores", nargs="+")
        command.add_argument("--requests", type=whole(), default=200 if command is smollm else 60)
        command.add_argument("--experts-per-token", type=whole())
    unpack = commands.add_parser("unpack")
    unpack.add_argument("source", type=Path)
    unpack.add_argument("directory", type=Path)
    given = parser.parse_args()
    if given.command == "unpack":
        unpacked(given.source, given.directory)
        return
    for store in given.stores:
        with Engine.open(
            store,
            budget=Budget(ram_bytes=1 << 30, context_tokens=2048),
            runtime=Runtime(profile=False),
            experts_per_token=given.experts_per_token,
            grammars=True,
        ) as engine:
            line: dict[str, Any] = {"store": str(store), "experts": engine.shape.experts.top_k}
            if given.command == "smollm":
                line["calls"] = calls(engine, given.requests)
                line["schemas"] = answers(engine, given.requests)
            else:
                line["held out"] = held_out(engine, given.cases, given.requests)
            print(json.dumps(line), flush=True)


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


def reply(engine: Engine, ids: Sequence[int], sampling: Sampling, guide: Any) -> list[int]:
    """The ids of a reply, its stop token excepted."""
    steps = engine.session().generate(ids, sampling, guide=guide)
    return [step.id for step in steps if step.id not in engine.stop_ids]


def read_calls(engine: Engine, syntax: Syntax, tools: Any, ids: list[int]) -> list[Call] | None:
    """The calls of a reply that says nothing else."""
    parser = ReplyParser(engine.tokenizer, syntax, tools, thinking=False)
    pieces = [piece for id in ids for piece in parser.push(id)] + parser.finish()
    found = [piece for piece in pieces if isinstance(piece, Call)]
    others = [piece for piece in pieces if isinstance(piece, Content) and piece.text.strip()]
    return found if found and not others else None


def fits(value: object, schema: Any) -> bool:
    try:
        jsonschema.validate(
            value, schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
    except jsonschema.ValidationError:
        return False
    return True


def asked(engine: Engine, system: str, user: str) -> list[int]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return engine.tokenizer.encode_segments(engine.template.render(messages))


def drawn(engine: Engine, seed: int) -> Sampling:
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    return engine.sampling(**plain, seed=seed, max_tokens=MOST_TOKENS)


def calls(engine: Engine, requests: int) -> dict[str, Any]:
    """Tool calls that are demanded, at temperature 1."""
    schemas = {name: listed(properties) for name, properties in TOOLS.items()}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in schemas.items()
    ]
    system = SYSTEM.format(tools="\n".join(map(json.dumps, tools)))
    valid = {"bound": 0, "free": 0}
    tokens = {"bound": 0, "free": 0}
    for seed, question in zip(range(requests), itertools.cycle(ASKED), strict=False):
        ids = asked(engine, system, filled(question, seed))
        for kind in valid:
            choice: Any = {"tool_choice": "required", "parallel_calls": False}
            guide = engine.grammars.guide(tools=tools, **choice) if kind == "bound" else None
            made = reply(engine, ids, drawn(engine, seed), guide)
            found = read_calls(engine, engine.syntax, tools, made)
            tokens[kind] += len(made)
            valid[kind] += found is not None and all(
                call.name in schemas and fits(json.loads(call.arguments), schemas[call.name])
                for call in found
            )
    return {"requests": requests, "valid": valid, "tokens": tokens}


def answers(engine: Engine, requests: int) -> dict[str, Any]:
    """Answers by a schema that the prompt names too, at temperature 1."""
    valid = {"bound": 0, "free": 0}
    for seed, question in zip(range(requests), itertools.cycle(FORMS), strict=False):
        schema = listed(FORMS[question])
        system = f"Answer with JSON alone, by this schema: {json.dumps(schema)}"
        ids = asked(engine, system, filled(question, seed))
        for kind in valid:
            guide = engine.grammars.guide(form=JsonSchema(schema)) if kind == "bound" else None
            text = engine.tokenizer.decode(reply(engine, ids, drawn(engine, seed), guide))
            try:
                valid[kind] += fits(json.loads(text), schema)
            except ValueError:
                continue
    return {"requests": requests, "valid": valid}


def held_out(engine: Engine, path: Path, requests: int) -> dict[str, Any]:
    """Requests that the demo's training did not have, greedy: valid calls, and right ones."""
    valid = {"bound": 0, "free": 0}
    right = {"bound": 0, "free": 0}
    sampling = engine.sampling(temperature=0, max_tokens=120)
    cases = cases_of(path)[:requests]
    for case in cases:
        schemas = {tool["function"]["name"]: tool["function"] for tool in case["tools"]}
        ids = engine.tokenizer.encode(case["prompt"])
        for kind in valid:
            choice: Any = {"tool_choice": "required", "parallel_calls": False}
            bound = kind == "bound"
            guide = engine.grammars.guide(tools=case["tools"], **choice) if bound else None
            made = reply(engine, ids, sampling, guide)
            found = read_calls(engine, engine.syntax, case["tools"], made)
            if found is None or len(found) != 1 or found[0].name not in schemas:
                continue
            arguments = json.loads(found[0].arguments)
            valid[kind] += fits(arguments, schemas[found[0].name]["parameters"])
            right[kind] += found[0].name == case["name"] and arguments == case["arguments"]
    return {"requests": len(cases), "valid": valid, "right": right}


def cases_of(path: Path) -> list[dict[str, Any]]:
    """Requests of a file: objects with tools, prompt, name and arguments."""
    wanted = {"tools", "prompt", "name", "arguments"}
    try:
        cases = json.loads(path.read_text())
        if all(wanted <= case.keys() for case in cases):
            return list(cases)
    except (ValueError, AttributeError, TypeError):
        pass
    sys.exit(f"error: {path} is no JSON list of objects with {', '.join(sorted(wanted))}")


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
