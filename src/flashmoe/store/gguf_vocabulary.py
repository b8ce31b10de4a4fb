"""The vocabulary inside a GGUF, as the tokenizer files of a Hugging Face checkpoint.

Owns the meaning of the ``tokenizer.*`` keys (gguf specification, "Tokenizer"); not the reading
of the file. Invariant: every token keeps its id, and the result is a function of the keys alone.

Two models are known. ``gpt2`` is byte-level BPE; ``tokenizer.ggml.pre`` names how text is cut
before it. ``llama`` is SentencePiece BPE: its merges follow from the scores, as in transformers'
converter, and characters outside the vocabulary fall back to bytes. Control, unknown, byte and
user-defined tokens take no part in merges: SentencePiece never spells them from letters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flashmoe.errors import CheckpointError
from flashmoe.store.gguf_keys import (
    AGAIN,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Keys,
    shown,
)

_SPACE = "\u2581"
_LENGTH_LIMIT = 1024  # characters of a SentencePiece token; published ones stay under 100
_NAMED = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
_ENDS = ("eos", "eot", "eom")  # end of sequence, of turn, of message: any ends a reply


@dataclass(frozen=True)
class _Cut:
    """How one value of ``tokenizer.ggml.pre`` cuts text before the BPE.

    ``split`` takes the place of GPT-2's own expression; ``digits`` cuts every digit off first.
    ``composed`` normalises to NFC and ``whole_words`` takes a word of the vocabulary before any
    merge: both as in the published tokenizer.json, for a GGUF says neither. ``bos`` holds where
    the file has no ``add_bos_token``.
    """

    split: str | None = None
    digits: bool = False
    composed: bool = False
    whole_words: bool = False
    bos: bool = False


# The expressions stand in the models' published tokenizer.json files, and in llama.cpp.
_LLAMA3 = _Cut(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_words=True,
    bos=True,
)
_QWEN2 = _Cut(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    composed=True,
)
_QWEN35 = _Cut(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    composed=True,
)
_CUTS = {
    "default": _Cut(),
    "gpt-2": _Cut(),
    "smollm": _Cut(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "qwen35": _QWEN35,
}


@dataclass(frozen=True)
class Vocabulary:
    """What a store keeps: the text of tokenizer.json, two configs and the chat template."""

    tokenizer_json: str
    tokenizer_config: dict[str, Any]
    generation_config: dict[str, Any]
    chat_template: str | None


def vocabulary(fields: Mapping[str, object]) -> Vocabulary:
    """Translate GGUF metadata: ``fields`` maps keys to strings, numbers, booleans and lists.

    Raises CheckpointError, naming the key, for what is missing, malformed or not known.
    """
    keys = Keys(fields)
    model = keys.text("tokenizer.ggml.model")
    if model == "gpt2":
        cut = _cut(keys)
        definition, bos = _byte_level(keys, cut), cut.bos
    elif model == "llama":
        definition, bos = _sentence_piece(keys), True
    else:
        raise CheckpointError(
            f"tokenizer.ggml.model is {model!r}; only 'gpt2' and 'llama' are supported: use a "
            "model with a byte-level or SentencePiece BPE"
        )
    named = {name: keys.named_token(key) for name, key in _NAMED.items()}
    adds_bos = keys.flag("tokenizer.ggml.add_bos_token", bos) and named["bos_token"] is not None
    adds_eos = keys.flag("tokenizer.ggml.add_eos_token", False) and named["eos_token"] is not None
    before = [named["bos_token"]] if adds_bos else []
    after = [named["eos_token"]] if adds_eos else []
    definition["added_tokens"] = _added(keys)
    definition["post_processor"] = _frame(keys, before, after)
    return Vocabulary(
        tokenizer_json=json.dumps(definition, ensure_ascii=False),
        tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "add_bos_token": adds_bos,
            "add_eos_token": adds_eos,
            **{name: token for name, token in named.items() if token is not None},
        },
        generation_config=_generation(keys),
        chat_template=keys.text("tokenizer.chat_template", "") or None,
    )


def _cut(keys: Keys) -> _Cut:
    name = keys.text("tokenizer.ggml.pre", "default")
    if name not in _CUTS:
        raise CheckpointError(
            f"tokenizer.ggml.pre is {name!r}, a way to cut text that is not known here; use a "
            f"model with one of {', '.join(_CUTS)}, or its safetensors checkpoint"
        )
    return _CUTS[name]


def _byte_level(keys: Keys, cut: _Cut) -> dict[str, Any]:
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": cut.split is None,
    }
    steps: list[dict[str, Any]] = [byte_level]
    if cut.split is not None:
        pattern = {"Regex": cut.split}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        steps.insert(0, split)
    if cut.digits:
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    return _definition(
        normalizer={"type": "NFC"} if cut.composed else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
        decoder=byte_level | {"use_regex": True},
        model=_bpe(keys, _published_merges(keys), ignore_merges=cut.whole_words),
    )


def _published_merges(keys: Keys) -> list[tuple[str, str]]:
    merges = []
    for line in keys.texts("tokenizer.ggml.merges"):
        left, space, right = line.partition(" ")
        if not space or not {left, right, left + right} <= keys.ids.keys():
            raise CheckpointError(
                f"tokenizer.ggml.merges holds {shown(line)}, which is no pair of tokens that "
                f"makes a token; {AGAIN}"
            )
        merges.append((left, right))
    return merges


def _sentence_piece(keys: Keys) -> dict[str, Any]:
    padded = keys.flag("tokenizer.ggml.add_space_prefix", True)
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if padded else []
    unknown = keys.named_token(_NAMED["unk_token"]) or ("<unk>" if "<unk>" in keys.ids else None)
    return _definition(
        normalizer=None,
        pre_tokenizer={
            "type": "Metaspace",
            "replacement": _SPACE,
            "prepend_scheme": "first" if padded else "never",
            "split": False,
        },
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        model=_bpe(keys, _derived_merges(keys), unk_token=unknown, byte_fallback=True),
    )


def _derived_merges(keys: Keys) -> list[tuple[str, str]]:
    """Every way to make a token of two, the best-scored token first.

    Equal scores go by the longer left part, then the longer right part, then by id.
    """
    scores = keys.scores()
    mergeable = (NORMAL, UNUSED)
    spelled = {t for t, kind in zip(keys.tokens, keys.types, strict=True) if kind in mergeable}
    ranked = []
    for index, token in enumerate(keys.tokens):
        if token not in spelled:
            continue
        if len(token) > _LENGTH_LIMIT:
            raise CheckpointError(
                f"token {index} has {len(token)} characters; at most {_LENGTH_LIMIT} are read; "
                f"{AGAIN}"
            )
        halves = ((token[:place], token[place:]) for place in range(1, len(token)))
        pairs = [pair for pair in halves if spelled.issuperset(pair)]
        pairs.sort(key=lambda pair: (keys.ids[pair[0]], keys.ids[pair[1]]))
        ranked += [(-scores[index], -len(left), -len(right), left, right) for left, right in pairs]
    ranked.sort(key=lambda entry: entry[:3])
    return [(left, right) for *_, left, right in ranked]


def _bpe(
    keys: Keys,
    merges: list[tuple[str, str]],
    *,
    unk_token: str | None = None,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": keys.ids,
        "merges": merges,
    }


def _definition(**parts: Any) -> dict[str, Any]:
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], **parts}


def _added(keys: Keys) -> list[dict[str, Any]]:
    """The tokens that text is searched for, before any cutting."""
    return [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != USER_DEFINED,
        }
        for index, (token, kind) in enumerate(zip(keys.tokens, keys.types, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token
    ]


def _frame(keys: Keys, before: list[str | None], after: list[str | None]) -> dict[str, Any] | None:
    """What surrounds a raw prompt, as a TemplateProcessing step."""
    around = [token for token in (*before, *after) if token is not None]
    if not around:
        return None

    def parts(sequence: str, kind: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": sequence, "type_id": kind}}
        left, right = (
            [{"SpecialToken": {"id": token, "type_id": kind}} for token in tokens]
            for tokens in (before, after)
        )
        return [*left, text, *right]

    return {
        "type": "TemplateProcessing",
        "single": parts("A", 0),
        "pair": parts("A", 0) + parts("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [keys.ids[token]], "tokens": [token]} for token in around
        },
    }


def _generation(keys: Keys) -> dict[str, Any]:
    """The ids that a generation_config.json names."""
    ends = [keys.token_id(f"tokenizer.ggml.{name}_token_id") for name in _ENDS]
    found = {
        "bos_token_id": keys.token_id(_NAMED["bos_token"]),
        "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None)) or None,
        "pad_token_id": keys.token_id(_NAMED["pad_token"]),
    }
    return {name: value for name, value in found.items() if value is not None}
