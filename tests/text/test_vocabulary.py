"""A vocabulary as grammars see it: its tokens' bytes, and what no text is."""

from __future__ import annotations

import pytest

from flashmoe.errors import StoreError
from flashmoe.text.vocabulary import Vocabulary


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
