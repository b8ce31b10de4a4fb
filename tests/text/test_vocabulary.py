"""A vocabulary as grammars see it: its tokens' bytes, and what no text is."""

from __future__ import annotations

import json

import jsonschema
import pytest

from flashmoe.errors import InputError, StoreError
from flashmoe.text import Tokenizer
from flashmoe.text.detokenizer import byte_alphabet
from flashmoe.text.forms import JsonSchema, Regex
from flashmoe.text.vocabulary import Vocabulary
from tests.text.bound import drawn, grammars_of, listed
from tests.text.conftest import AUSTEN


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece", "untagged"])
def test_a_vocabulary_spells_what_its_tokenizer_decodes(kind, request):
    tokenizer = request.getfixturevalue(kind)
    vocabulary = Vocabulary(tokenizer, tokenizer.stop_ids, tokenizer.vocab_size)
    text = 'the {"a": [1, 2]}\n\tthé 日本 😀 </s> <tool_call>'
    plain = vocabulary._encoded(text.encode())
    assert vocabulary.backend.decode_bytes(plain).decode() == text
    assert set(plain).isdisjoint(tokenizer.structure)
    assert (
        vocabulary.backend.decode_bytes(vocabulary._encoded("é日".encode()[:4]))
        == "é日".encode()[:4]
    )
    for id in tokenizer.structure:
        assert vocabulary.backend.is_special_token(id)


def test_marks_are_ids_where_they_are_tokens(byte_level, untagged):
    for tokenizer, structural in ((byte_level, 1), (untagged, 0)):
        vocabulary = Vocabulary(tokenizer, tokenizer.stop_ids, tokenizer.vocab_size)
        ids = vocabulary.ids_of("\n</think>\n\n")
        assert tokenizer.decode(ids) == "\n</think>\n\n"
        assert sum(id in tokenizer.structure for id in ids) == structural


def test_a_reply_that_cannot_end_is_refused(byte_level):
    with pytest.raises(StoreError, match="no token that ends a reply"):
        Vocabulary(byte_level, frozenset(), byte_level.vocab_size)


def test_a_vocabulary_that_cannot_spell_every_byte_is_refused(byte_level):
    with pytest.raises(StoreError, match="no token for"):
        Vocabulary(byte_level, frozenset({3}), 60)


@pytest.fixture(scope="module")
def lacking(untagged) -> Tokenizer:
    """A byte-level vocabulary without a token for some bytes that texts hardly have, as SmolLM2's:
    two control characters, and what characters from U+40000 on begin with."""
    definition = json.loads((AUSTEN / "tokenizer.json").read_text())
    alphabet = byte_alphabet()
    gone = {alphabet[byte] for byte in (0x04, 0x1D, 0xF1, 0xF2)}
    words = definition["model"]["vocab"]
    spare = iter(range(len(words)))
    assert gone <= words.keys()
    definition["model"]["vocab"] = {
        f"spare{next(spare)}" if word in gone else word: id for word, id in words.items()
    }
    return Tokenizer(definition, json.loads((AUSTEN / "tokenizer_config.json").read_text()))


def test_a_vocabulary_without_rare_bytes_binds_replies_all_the_same(lacking):
    grammars = grammars_of(lacking, "json")
    schema = listed({"a": {"type": "string", "maxLength": 30}, "b": {"enum": ["x", "é日😀"]}})
    for seed in range(5):
        ids, ended = drawn(grammars.guide(form=JsonSchema(schema)), lacking, seed)
        assert ended
        jsonschema.validate(json.loads(lacking.decode(ids[:-1])), schema)
        ids, ended = drawn(grammars.guide(form=Regex("[^a]{3}")), lacking, seed)
        assert ended and len(lacking.decode(ids[:-1])) == 3


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (Regex("a\x04b"), "the regular expression of the answer: .*spell"),
        (Regex(r"[\x{40000}\x{7FFFF}]"), "the regular expression of the answer: .*spell"),
        (JsonSchema({"enum": ["a\U00040000"]}), r"no token for '\\U00040000'"),
        (JsonSchema({"properties": {"\U00040000": {}}}), r"no token for '\\U00040000'"),
    ],
)
def test_what_it_cannot_spell_is_refused_before_a_token_is_drawn(lacking, form, words):
    grammars = grammars_of(lacking, "json")
    with pytest.raises(InputError, match=words):
        grammars.guide(form=form)
    assert grammars.guide(form=Regex("a[\x04x]b")).mask() is not None


def test_the_characters_that_are_lacking(lacking, byte_level):
    def vocabulary(tokenizer):
        return Vocabulary(tokenizer, tokenizer.stop_ids, tokenizer.vocab_size)

    assert vocabulary(byte_level).lacking is None
    assert vocabulary(lacking).lacking == r"\x{4}\x{1D}\x{40000}-\x{7FFFF}\x{80000}-\x{BFFFF}"
    assert vocabulary(lacking).unspelled("aé日😀\U000fffff") is None
    assert vocabulary(lacking).unspelled("a\U00099999b\x04") == "\U00099999"
