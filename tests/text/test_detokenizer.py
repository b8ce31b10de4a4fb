"""Streamed text equals decoded text, whole characters only, and stops where it must."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders

from flashmoe.errors import StoreError
from flashmoe.text import Detokenizer, Tokenizer
from flashmoe.text.detokenizer import assembler, byte_alphabet


class Letters:
    """A vocabulary of bytes: id n is the byte n, and the ids from 256 mean nothing."""

    decoder: object = MappingProxyType({"type": "ByteLevel"})
    alphabet = MappingProxyType(byte_alphabet())

    def token(self, id: int) -> str | None:
        return self.alphabet.get(id)

    def is_special(self, id: int) -> bool:
        return id == ord("#")


def streamed(vocabulary: Any, ids: list[int], **options: Any) -> list[str]:
    detokenizer = Detokenizer(vocabulary, **options)
    return [*map(detokenizer.push, ids), detokenizer.finish()]


@given(ids=st.lists(st.integers(0, 4095), max_size=60))
def test_byte_level_stream_equals_decode(ids: list[int], byte_level: Tokenizer) -> None:
    assert "".join(streamed(byte_level, ids)) == byte_level.decode(ids)
    assert "".join(streamed(byte_level, ids, skip_special=True)) == byte_level.decode(
        ids, skip_special=True
    )


@given(ids=st.lists(st.integers(0, 285), max_size=60))
@example(ids=[3 + 1 + 0xE6, 3 + 1 + 0x97, 3 + 1 + 0xA5, 260, 261])
@example(ids=[260, 260, 261])
@example(ids=[1, 260, 2])
def test_sentence_piece_stream_equals_decode(ids: list[int], sentence_piece: Tokenizer) -> None:
    assert "".join(streamed(sentence_piece, ids)) == sentence_piece.decode(ids)
    assert "".join(streamed(sentence_piece, ids, skip_special=True)) == sentence_piece.decode(
        ids, skip_special=True
    )


@given(data=st.lists(st.sampled_from([*b"aE\xe2\x82\xac\xf0\x9f\x99\x82\xc3\xff\xed\xa0\x80"])))
def test_any_bytes_give_the_standard_replacement(data: list[int]) -> None:
    assert "".join(streamed(Letters(), data)) == bytes(data).decode(errors="replace")


@given(text=st.text())
def test_no_piece_ends_inside_a_character(text: str) -> None:
    text = text.encode(errors="ignore").decode()
    pieces = streamed(Letters(), list(text.encode()))
    assert "".join(pieces) == text
    assert all(len(piece) <= 1 for piece in pieces)


def test_a_character_appears_with_its_last_byte() -> None:
    assert streamed(Letters(), list("a€🙂".encode())) == ["a", "", "", "€", "", "", "", "🙂", ""]


def test_a_broken_character_is_replaced_as_soon_as_it_is_certain() -> None:
    assert streamed(Letters(), [0xE2, 0x82, ord("a"), 0xFF]) == ["", "", "\ufffda", "\ufffd", ""]
    assert streamed(Letters(), [0xE2, 0x82]) == ["", "", "\ufffd"]


def test_an_id_without_a_token_adds_nothing(byte_level: Tokenizer) -> None:
    assert "".join(streamed(byte_level, [64, 4096, 9_999_999, 65])) == byte_level.decode([64, 65])


def test_special_tokens_are_skipped_on_request() -> None:
    assert "".join(streamed(Letters(), list(b"a#b"))) == "a#b"
    assert "".join(streamed(Letters(), list(b"a#b"), skip_special=True)) == "ab"


def test_a_stop_string_ends_the_reply() -> None:
    detokenizer = Detokenizer(Letters(), ["END", "no"])
    assert [detokenizer.push(byte) for byte in b"aENEND!"] == ["a", "", "", "EN", "", "", ""]
    assert detokenizer.stopped == "END"
    assert detokenizer.finish() == ""


def test_the_end_can_complete_a_stop_string() -> None:
    detokenizer = Detokenizer(Letters(), ["b\ufffd"])
    assert [detokenizer.push(byte) for byte in b"ab\xe2"] == ["a", "", ""]
    assert detokenizer.finish() == ""
    assert detokenizer.stopped == "b\ufffd"


METASPACES: list[dict[str, Any]] = [
    {"replacement": "▁", "prepend_scheme": scheme} for scheme in ("always", "never", "first")
]


@pytest.mark.parametrize("options", METASPACES, ids=str)
@pytest.mark.parametrize("tokens", [["▁▁a", "▁b▁", "c"], ["▁", "▁"], ["a▁"], []], ids=str)
def test_metaspace_equals_the_library(options: dict[str, Any], tokens: list[str]) -> None:
    joiner = assembler({"type": "Metaspace", **options})
    text = "".join(map(joiner.push, tokens)) + joiner.finish()
    assert text == decoders.Metaspace(**options).decode(tokens)


REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {},
        {"type": "WordPiece", "prefix": "##"},
        {"type": "Sequence", "decoders": []},
        {"type": "Sequence", "decoders": "x"},
        {"type": "Sequence", "decoders": [REPLACE, {"type": "Metaspace"}]},
        {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, REPLACE]},
        {"type": "Sequence", "decoders": [REPLACE, {"type": "Strip", "content": " ", "start": 1}]},
        {"type": "Sequence", "decoders": [REPLACE | {"pattern": {"Regex": "x+"}}]},
        {
            "type": "Sequence",
            "decoders": [
                REPLACE,
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 0, "stop": 1},
            ],
        },
    ],
    ids=str,
)
def test_a_decoder_that_cannot_be_streamed_is_refused(decoder: Any) -> None:
    with pytest.raises(StoreError, match="cannot be followed token by token"):
        assembler(decoder)


def test_the_byte_alphabet_is_a_bijection_of_printable_characters() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet) == list(range(256))
    assert len(set(alphabet.values())) == 256
    assert all(character.isprintable() for character in alphabet.values())
    assert alphabet[ord(" ")] == "Ġ"
    assert alphabet[ord("\n")] == "Ċ"


@given(text=st.text(min_size=1), cut=st.integers(1, 3))
def test_a_reply_that_is_cut_ends_before_the_half_character(text: str, cut: int) -> None:
    data = text.encode(errors="replace")
    kept = data[: max(len(data) - cut, 0)]
    detokenizer = Detokenizer(Letters(), stop=["never met"])
    made = "".join([*map(detokenizer.push, kept), detokenizer.finish(cut=True)])
    assert made == kept.decode(errors="ignore")
