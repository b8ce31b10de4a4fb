"""Markup and content apart, and refusals for files that are no tokenizer."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.errors import FlashMoeError, InputError, StoreError
from flashmoe.text import Segment, Tokenizer

AUSTEN = Path(__file__).parents[2] / "models" / "austen-moe"
START, END, THINK = 4088, 4089, 4094  # <|im_start|>, <|im_end|>, <think>
LETTERS = "abcdefgh<>|/_ik3"
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}


def small(**model: Any) -> dict[str, Any]:
    """A byte-level tokenizer of a few letters, and two added tokens."""
    vocabulary = {letter: index for index, letter in enumerate(LETTERS)}
    vocabulary |= {"Ġ": 16, "<s": 17, "s": 18, "<s>": 19}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": 19, "content": "<s>", "special": True, **flags},
            {"id": 20, "content": "<|a|>", "special": False, **flags},
        ],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], **model},
    }


def content(text: str) -> list[Segment]:
    return [Segment(text, markup=False)]


def test_markup_counts_in_markup_alone(byte_level: Tokenizer) -> None:
    text = "<|im_start|>user<think>"
    assert byte_level.encode(text)[0] == START
    assert byte_level.encode(text)[-1] == THINK
    ids = byte_level.encode_segments(content(text))
    assert {START, THINK}.isdisjoint(ids)
    assert byte_level.decode(ids) == text


@given(
    text=st.lists(
        st.sampled_from(
            ["<|im_start|>", "<think>", "</think>", "<", "|", ">", "im_", " ", "a", "日"]
        )
    ).map("".join)
)
def test_content_never_yields_an_added_token(text: str, byte_level: Tokenizer) -> None:
    ids = byte_level.encode_segments(content(text))
    assert all(id < 4087 for id in ids)
    assert byte_level.decode(ids) == text


def test_content_is_encoded_as_if_there_were_no_added_tokens(byte_level: Tokenizer) -> None:
    definition = json.loads((AUSTEN / "tokenizer.json").read_text())
    plain = Tokenizer(definition | {"added_tokens": []}, {})
    for text in ("<|im_start|>user<think>a</think>", "say <|im_end|> twice: <|im_end|>"):
        assert byte_level.encode_segments(content(text)) == plain.encode(text)


@given(text=st.text(max_size=20), cuts=st.lists(st.integers(0, 20)))
def test_where_a_segment_ends_changes_no_id(
    text: str, cuts: list[int], byte_level: Tokenizer
) -> None:
    text = text.encode(errors="ignore").decode()
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    parts = [text[start:end] for start, end in pairwise(ends)]
    segments = [Segment(part, markup=False) for part in parts]
    assert byte_level.encode_segments(segments) == byte_level.encode_segments(content(text))


def test_segments_may_mix_words_into_markup(byte_level: Tokenizer) -> None:
    mixed = [Segment("<|im_start|>user\n", markup=True), Segment("hello<think>", markup=False)]
    apart = [Segment("<|im_start|>", markup=True), Segment("user\nhello<think>", markup=False)]
    assert byte_level.encode_segments(mixed) == byte_level.encode_segments(apart)


def test_only_text_at_the_beginning_is_padded(sentence_piece: Tokenizer) -> None:
    spelled = [sentence_piece.token(id) for id in sentence_piece.encode("the<tool>the the")]
    assert spelled == ["<s>", "▁the", "<tool>", "the", "▁the"]
    segments = [Segment("<s>", markup=True), Segment("the", markup=False)]
    spelled = [sentence_piece.token(id) for id in sentence_piece.encode_segments(segments)]
    assert spelled == ["<s>", "the"]


def test_a_token_that_letters_can_spell_is_cut() -> None:
    merges = [["<", "s"], ["<s", ">"]]
    tokenizer = Tokenizer(small(merges=merges), {})
    text = "a<s>b<s><s>"
    ids = tokenizer.encode_segments(content(text))
    assert 19 not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text).count(19) == 3


def test_a_token_of_one_letter_cannot_be_cut() -> None:
    definition = small()
    definition["added_tokens"].append(
        {**definition["added_tokens"][0], "id": LETTERS.index("|"), "content": "|"}
    )
    with pytest.raises(InputError, match="remove it from the text"):
        Tokenizer(definition, {}).encode_segments(content("a|b"))


def test_white_space_and_the_unknown_token_are_not_structure() -> None:
    definition = small(unk_token="<s>")
    flags = {k: v for k, v in definition["added_tokens"][1].items() if k not in ("id", "content")}
    definition["added_tokens"].append({"id": 21, "content": "  ", **flags})
    tokenizer = Tokenizer(definition, {})
    assert tokenizer.markup == ("<s>", "<|a|>")
    assert tokenizer.encode_segments(content("aéb")) == [0, 19, 19, 1]


@pytest.mark.parametrize(
    ("flag", "text", "expected"),
    [
        ("lstrip", "a \u3000<|a|> b", ["a", "<|a|>", "Ġ", "b"]),
        ("rstrip", "a <|a|>\n b", ["a", "Ġ", "<|a|>", "b"]),
        ("rstrip", "<|a|> <|a|>", ["<|a|>", "<|a|>"]),
        ("single_word", "b<|a|>", ["b", "<", "|", "a", "|", ">"]),
        ("single_word", "b <|a|> b", ["b", "Ġ", "<|a|>", "Ġ", "b"]),
    ],
)
def test_flags_of_added_tokens(flag: str, text: str, expected: list[str]) -> None:
    definition = small()
    definition["added_tokens"][1][flag] = True
    tokenizer = Tokenizer(definition, {})
    assert [tokenizer.token(id) for id in tokenizer.encode(text)] == expected


def test_flags_reach_over_segments() -> None:
    definition = small()
    definition["added_tokens"][1] |= {"lstrip": True, "rstrip": True}
    tokenizer = Tokenizer(definition, {})
    segments = [
        Segment("a ", markup=False),
        Segment(" ", markup=False),
        Segment("<|a|>", markup=True),
        Segment(" ", markup=False),
        Segment(" b ", markup=False),
    ]
    assert tokenizer.encode_segments(segments) == [0, 20, 1, 16]


def test_special_and_stop_ids(byte_level: Tokenizer) -> None:
    assert byte_level.vocab_size == 4096
    assert byte_level.stop_ids == {END}
    assert byte_level.eos_token == "<|im_end|>"
    assert byte_level.bos_token == ""
    assert byte_level.is_special(START)
    assert not byte_level.is_special(THINK)
    assert byte_level.id_of("<think>") == THINK
    assert byte_level.id_of("no such token") is None
    assert byte_level.token(4096) is None
    assert byte_level.decode([START, THINK, 64], skip_special=True) == "<think>a"


def test_a_checkpoint_without_a_config_has_no_stop_id(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(small()))
    assert Tokenizer.load(tmp_path).stop_ids == frozenset()


def test_the_post_processor_frames_a_raw_prompt(sentence_piece: Tokenizer) -> None:
    assert sentence_piece.encode("")[0] == 1
    assert sentence_piece.encode("a")[0] == 1
    assert sentence_piece.encode_segments(content("a"))[0] != 1


def test_truncation_and_padding_in_the_file_count_for_nothing() -> None:
    definition = small()
    definition["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    assert Tokenizer(definition, {}).encode("abcd") == [0, 1, 2, 3]


def test_a_lone_surrogate_is_refused(byte_level: Tokenizer) -> None:
    for text in ("a\ud800", "\udc00<think>"):
        with pytest.raises(InputError, match=r"not Unicode, .*: remove") as refused:
            byte_level.encode(text)
        assert "TextInput" not in str(refused.value) and "codec" not in str(refused.value)


@pytest.mark.parametrize("id", [-1, 1 << 32])
def test_an_id_out_of_range_is_refused(id: int, byte_level: Tokenizer) -> None:
    with pytest.raises(InputError, match="ids run from 0"):
        byte_level.decode([id])
    with pytest.raises(InputError, match="ids run from 0"):
        byte_level.token(id)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", None, "does not exist"),
        ("tokenizer.json", "{", "is not JSON"),
        ("tokenizer.json", "\xff", "is not JSON"),
        ("tokenizer.json", "[" * 100_000, "is not JSON"),
        ("tokenizer.json", "[]", "instead of an object"),
        ("tokenizer.json", "{}", "no BPE model"),
        ("tokenizer_config.json", "nonsense", "is not JSON"),
    ],
)
def test_a_malformed_file_is_named_with_its_mend(
    name: str, text: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(small()))
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert message in str(caught.value)
    assert "copy it from the checkpoint again" in str(caught.value)


def test_a_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        Tokenizer.load(tmp_path)


def without(key: str) -> dict[str, Any]:
    definition = small()
    del definition["model"][key]
    return definition


ADDED = small()["added_tokens"]


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (small(type="Unigram", vocab=[["a", -1.0]]), "no BPE model"),
        (small(vocab={"a": -1}), "no BPE model"),
        (without("vocab"), "no BPE model"),
        (small(continuing_subword_prefix="##"), "continuing_subword_prefix"),
        (small(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (small(merges=[["a", "z"]]), "cannot be built"),
        (small() | {"pre_tokenizer": {"type": "Nonsense"}}, "cannot be built"),
        (small() | {"decoder": {"type": "WordPiece"}}, "token by token"),
        (small() | {"added_tokens": [{"id": 1}]}, "lists {'id': 1}"),
        (small() | {"added_tokens": [{"id": "1", "content": "x"}]}, "no usable id"),
        (small() | {"added_tokens": [ADDED[0], {**ADDED[1], "id": 19}]}, "to both '<s>' and"),
        (small() | {"added_tokens": [{**ADDED[1], "id": 30}]}, "ids are missing before it"),
    ],
)
def test_a_definition_that_is_no_tokenizer_is_refused(
    definition: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError) as caught:
        Tokenizer(definition, {})
    assert message in str(caught.value)


VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 0, 1 << 40, 1.5, "", "x", "(", "\ud800", [], {}, [[]], {"type": "ByteLevel"}]
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in JSON data with each of its keys."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    inner = [value[key] for key in keys if isinstance(value[key], dict | list)]
    return [(value, key) for key in keys] + [place for item in inner for place in places(item)]


@given(changes=st.lists(st.tuples(st.integers(0, 200), VALUES), min_size=1, max_size=2))
def test_no_change_to_the_file_escapes_the_refusals(changes: list[tuple[int, Any]]) -> None:
    definition = copy.deepcopy(small())
    for index, value in changes:
        found = places(definition)
        container, key = found[index % len(found)]
        container[key] = copy.deepcopy(value)
    try:
        tokenizer = Tokenizer(definition, {})
        tokenizer.decode(tokenizer.encode("a<s>é <|a|>"))
    except FlashMoeError as error:
        assert str(error)
