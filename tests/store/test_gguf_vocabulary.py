"""GGUF vocabularies become the tokenizers they describe; everything else is refused by key."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.errors import CheckpointError
from flashmoe.store.gguf_vocabulary import Vocabulary, vocabulary

LETTERS = [*"abcde123ĠĊéÃ©Ìģ"]
MERGED = ["ĠĠ", "12", "123", "Ġa", "Ã©"]
MERGES = ["Ġ Ġ", "1 2", "12 3", "Ġ a", "Ã ©"]


def gpt2(**changes: Any) -> dict[str, Any]:
    """A byte-level vocabulary of a few letters."""
    tokens = ["<|end|>", "<think>", "[PAD2]", *LETTERS, *MERGED]
    fields: dict[str, Any] = {
        "model": "gpt2",
        "pre": "default",
        "tokens": tokens,
        "token_type": [3, 4, 5, *[1] * (len(tokens) - 3)],
        "merges": MERGES,
        "eos_token_id": 0,
    }
    return prefixed(fields | changes)


def llama(**changes: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary; the score of a piece is not its place."""
    special = ["<unk>", "<s>", "</s>", "<tool call>"]
    pieces = {"▁": -9.0, "a": -10.0, "b": -11.0, "c": -12.0, "<": -13.0, ">": -14.0, "s": -15.0}
    pieces |= {"ab": -5.0, "bc": -4.0, "abc": -3.0, "▁a": -2.0, "<s": -1.0}
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*special, *byte_tokens, *pieces]
    fields: dict[str, Any] = {
        "model": "llama",
        "tokens": tokens,
        "scores": [*[0.0] * 260, *pieces.values()],
        "token_type": [2, 3, 3, 4, *[6] * 256, *[1] * len(pieces)],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return prefixed(fields | changes)


def prefixed(fields: dict[str, Any]) -> dict[str, Any]:
    given = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    return {key: value for key, value in given.items() if value is not None}


def backend(result: Vocabulary) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(result.tokenizer_json)


def pieces(fields: dict[str, Any], text: str) -> list[str]:
    tokens: list[str] = backend(vocabulary(fields)).encode(text).tokens
    return tokens


@pytest.mark.parametrize("fields", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_every_token_keeps_its_id(fields: dict[str, Any]) -> None:
    tokens = fields["tokenizer.ggml.tokens"]
    tokenizer = backend(vocabulary(fields))
    assert [tokenizer.id_to_token(id) for id in range(len(tokens))] == tokens
    assert tokenizer.get_vocab_size() == len(tokens)


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("default", "a  b123", ["a", "Ġ", "Ġ", "b", "123"]),
        ("default", "123  a", ["123", "Ġ", "Ġa"]),
        ("gpt-2", "a  123", ["a", "Ġ", "Ġ", "123"]),
        ("smollm", "a  123", ["a", "ĠĠ", "1", "2", "3"]),
        ("smollm", "a 1a", ["a", "Ġ", "1", "a"]),
        ("qwen2", "a  123", ["a", "Ġ", "Ġ", "1", "2", "3"]),
        ("qwen2", "a e\u0301", ["a", "Ġ", "Ã©"]),
        ("qwen35", "123\n\na", ["1", "2", "3", "Ċ", "Ċ", "a"]),
        ("llama-bpe", "1231 a", ["123", "1", "Ġa"]),
        ("llama3", "123", ["123"]),
        ("llama-v3", "12312", ["123", "12"]),
    ],
)
def test_pre_names_how_text_is_cut(pre: str, text: str, expected: list[str]) -> None:
    assert pieces(gpt2(pre=pre, merges=MERGES), text) == expected


def test_a_missing_pre_is_the_default() -> None:
    assert vocabulary(gpt2(pre=None)) == vocabulary(gpt2())


def test_combining_marks_belong_to_the_word_in_qwen35_alone() -> None:
    """A Hebrew point (no composed form): one word in Qwen3.5, two in Qwen2."""
    text = "\u05d0\u05b4"
    cuts = {}
    for pre in ("qwen2", "qwen35"):
        definition = json.loads(vocabulary(gpt2(pre=pre)).tokenizer_json)
        split = definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        cutter = tokenizers.pre_tokenizers.Split(tokenizers.Regex(split), "isolated")
        cuts[pre] = len(cutter.pre_tokenize_str(text))
    assert cuts == {"qwen2": 2, "qwen35": 1}


def test_llama3_takes_whole_words_before_merges() -> None:
    tokens = [*gpt2()["tokenizer.ggml.tokens"], "abc"]
    types = [*gpt2()["tokenizer.ggml.token_type"], 1]
    assert pieces(gpt2(pre="llama-bpe", tokens=tokens, token_type=types), "abc") == ["abc"]
    assert pieces(gpt2(pre="gpt-2", tokens=tokens, token_type=types), "abc") == ["a", "b", "c"]


def test_token_types() -> None:
    """Control and user-defined tokens are matched whole, unused ones never; 4 is not special."""
    result = vocabulary(gpt2())
    assert pieces(gpt2(), "a<|end|>b<think>") == ["a", "<|end|>", "b", "<think>"]
    assert "[PAD2]" not in pieces(gpt2(), "[PAD2]")
    added = json.loads(result.tokenizer_json)["added_tokens"]
    assert {entry["content"]: entry["special"] for entry in added} == {
        "<|end|>": True,
        "<think>": False,
    }


def test_merges_follow_from_the_scores() -> None:
    """▁a scores over abc over bc over ab: the best pair of the whole text is taken first."""
    assert pieces(llama(), "abc") == ["<s>", "▁a", "bc"]
    assert pieces(llama(add_space_prefix=False), "abc") == ["<s>", "abc"]
    assert pieces(llama(), "b abc ab") == ["<s>", "▁", "b", "▁a", "bc", "▁a", "b"]


def test_other_characters_fall_back_to_bytes() -> None:
    assert pieces(llama(), "a日") == ["<s>", "▁a", "<0xE6>", "<0x97>", "<0xA5>"]
    tokenizer = backend(vocabulary(llama()))
    ids = tokenizer.encode("a日 b").ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a日 b"


def test_control_tokens_are_not_spelled_by_merges() -> None:
    """``<s`` and ``>`` are pieces, and ``<s>`` scores best of all: it stays control."""
    tokenizer = backend(vocabulary(llama()))
    tokenizer.encode_special_tokens = True
    assert tokenizer.encode("<s>", add_special_tokens=False).tokens == ["▁", "<s", ">"]


@pytest.mark.parametrize(
    ("fields", "frame"),
    [
        (llama(), ("<s>", None)),
        (llama(add_bos_token=False), (None, None)),
        (llama(add_eos_token=True), ("<s>", "</s>")),
        (llama(bos_token_id=None), (None, None)),
        (gpt2(), (None, None)),
        (gpt2(add_eos_token=True), (None, "<|end|>")),
        (gpt2(add_bos_token=True), (None, None)),
        (gpt2(pre="llama-bpe", bos_token_id=0), ("<|end|>", None)),
        (gpt2(pre="llama-bpe", bos_token_id=0, add_bos_token=False), (None, None)),
    ],
    ids=str,
)
def test_what_surrounds_a_prompt(
    fields: dict[str, Any], frame: tuple[str | None, str | None]
) -> None:
    result = vocabulary(fields)
    plain = backend(result).encode("a", add_special_tokens=False).tokens
    before, after = ([token] if token else [] for token in frame)
    assert backend(result).encode("a").tokens == [*before, *plain, *after]
    assert result.tokenizer_config["add_bos_token"] == bool(before)
    assert result.tokenizer_config["add_eos_token"] == bool(after)


def test_the_configs_name_the_tokens() -> None:
    fields = llama(padding_token_id=0, eot_token_id=3, eom_token_id=2)
    result = vocabulary(fields | {"tokenizer.chat_template": "{{ x }}"})
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    assert named.items() <= result.tokenizer_config.items()
    assert result.generation_config == {
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": 0,
    }
    assert result.chat_template == "{{ x }}"
    assert vocabulary(gpt2()).generation_config == {"eos_token_id": [0]}
    assert vocabulary(gpt2()).chat_template is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (gpt2(model="bert"), "tokenizer.ggml.model is 'bert'; only 'gpt2' and 'llama'"),
        (gpt2(model=None), "tokenizer.ggml.model is missing"),
        (gpt2(pre="tekken"), "tokenizer.ggml.pre is 'tekken'"),
        (gpt2(pre=3), "tokenizer.ggml.pre is 3 instead of a string"),
        (gpt2(tokens=None), "tokenizer.ggml.tokens is missing"),
        (gpt2(tokens=[]), "tokenizer.ggml.tokens is []"),
        (gpt2(tokens=["a", 1]), "tokenizer.ggml.tokens holds 1 among strings"),
        (gpt2(tokens=["a", "b", "a"]), "tokenizer.ggml.tokens lists 'a' twice"),
        (gpt2(token_type=[1, 1]), "tokenizer.ggml.token_type has 2 entries for"),
        (gpt2(token_type=[1] * 22 + [7]), "tokenizer.ggml.token_type holds 7"),
        (gpt2(token_type="x"), "tokenizer.ggml.token_type is 'x'"),
        (gpt2(merges=None), "tokenizer.ggml.merges is missing"),
        (gpt2(merges=["ab"]), "holds 'ab', which is no pair"),
        (gpt2(merges=["a z"]), "holds 'a z', which is no pair"),
        (gpt2(merges=["a b"]), "holds 'a b', which is no pair"),
        (gpt2(eos_token_id=99), "tokenizer.ggml.eos_token_id is 99; ids run from 0 to 22"),
        (gpt2(eos_token_id=True), "tokenizer.ggml.eos_token_id is True"),
        (gpt2(eot_token_id=-1), "tokenizer.ggml.eot_token_id is -1"),
        (gpt2(add_bos_token=1), "tokenizer.ggml.add_bos_token is 1 instead of true or false"),
        (llama(scores=None), "tokenizer.ggml.scores is missing"),
        (llama(scores=[1.0]), "tokenizer.ggml.scores must hold one finite number"),
        (llama(scores=[float("nan")] * 272), "tokenizer.ggml.scores must hold one finite number"),
        (llama(scores=["1"] * 272), "tokenizer.ggml.scores holds '1' among numbers"),
        (gpt2() | {"tokenizer.chat_template": 1}, "tokenizer.chat_template is 1"),
        (prefixed({"model": "llama", "tokens": ["a" * 2000], "scores": [0.0]}), "2000 characters"),
    ],
)
def test_the_wrong_value_is_named_by_its_key(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        vocabulary(fields)
    assert message in str(caught.value)


VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 1 << 70, 1.5, float("inf"), "", "<s>", [], ["a"], [1], [None], {}, b"x"]
)


@given(
    name=st.sampled_from(["gpt2", "llama"]),
    changes=st.lists(st.tuples(st.integers(0, 20), VALUES), min_size=1, max_size=3),
)
def test_no_metadata_escapes_the_refusals(name: str, changes: list[tuple[int, Any]]) -> None:
    fields = copy.copy(gpt2() if name == "gpt2" else llama())
    keys = [*fields, "tokenizer.ggml.add_bos_token", "tokenizer.chat_template"]
    for index, value in changes:
        fields[keys[index % len(keys)]] = value
    try:
        backend(vocabulary(fields)).encode("ab <s>")
    except CheckpointError as error:
        assert "tokenizer." in str(error) or "token " in str(error)
