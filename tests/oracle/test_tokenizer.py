"""Tokenizers against transformers and SentencePiece: published files, and GGUF vocabularies."""

from __future__ import annotations

import io
import json
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from flashmoe.store.gguf_vocabulary import vocabulary
from flashmoe.text import ChatTemplate, Detokenizer, Tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

AUSTEN = Path(__file__).parents[2] / "models" / "austen-moe"
TEXTS = [
    "",
    " ",
    "Hello, how are you?",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune",
    "I'm you're HE'LL we've 'tis it's'S",
    "def f(x: int) -> str:\n\treturn f'{x!r:>10}'  # ok\n\n\nclass A:\n    pass\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 0x1F; }  // sum\r\n",
    "1 12 123 1234 12345.678e-9 3,141,592 1st 2nd v1.2.3 0x1F 2024-01-31 一二三",
    "naïve café façade Ångström ﬁn e\u0301 o\u0308 \u0958 Ω Ω",
    "日本語のテキスト、中文文本。한국어 텍스트 ภาษาไทย हिन्दी العربية עברית",
    "🙂👍🏽👩‍👩‍👧‍👦🇫🇷 a🙂b",
    "a b",
    "a  b   c    d\t\te\n\n\nf \n g\r\n\r\nh   ",
    "   leading and trailing   ",
    "\x00\x01\x7f\u200b\u2028\ufeff\ufffd",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <think>x</think><tool_call>",
    "<|im_start|><|im_start|>  <|im_end|>a<|im_end|>",
    "x" * 300 + "!" * 40 + "\n" * 40,
]
WORDS = [*"ab <>|_/0123456789\n\t'é日🙂", "  ", "the", " The", "<|im_start|>", "<|im_end|>", "</s>"]
PIECES = st.lists(st.sampled_from(WORDS), max_size=30).map("".join)


def meets_a_digit_rule(text: str) -> bool:
    """Whether cutting digits off first may change the words around them."""
    foreign = any(unicodedata.category(c).startswith("N") and not c.isascii() for c in text)
    return foreign or re.search(r"\s\s+\d", text) is not None


def saved(directory: Path, fields: dict[str, Any]) -> Tokenizer:
    """Our tokenizer of a GGUF's keys, through the files a store has."""
    result = vocabulary(fields)
    (directory / "tokenizer.json").write_text(result.tokenizer_json)
    (directory / "tokenizer_config.json").write_text(json.dumps(result.tokenizer_config))
    return Tokenizer.load(directory)


def gguf_fields(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(path)
    wanted = {key: field for key, field in reader.fields.items() if key.startswith("tokenizer.")}
    return {key: field.contents() for key, field in wanted.items()}


def theirs_of(path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="module")
def smollm_fields(smollm_gguf: Path) -> dict[str, Any]:
    return gguf_fields(smollm_gguf)


@pytest.fixture(scope="module")
def smollm(smollm_fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return saved(tmp_path_factory.mktemp("smollm"), smollm_fields)


@pytest.fixture(scope="module")
def smollm_oracle(smollm_gguf: Path) -> Any:
    return theirs_of(smollm_gguf)


@pytest.mark.parametrize("text", TEXTS)
def test_smollm_ids_and_text_equal_transformers(
    text: str, smollm: Tokenizer, smollm_oracle: Any
) -> None:
    ids = smollm.encode(text)
    assert ids == smollm_oracle(text)["input_ids"]
    assert smollm.decode(ids) == smollm_oracle.decode(ids)
    assert smollm.decode(ids, skip_special=True) == smollm_oracle.decode(
        ids, skip_special_tokens=True
    )


@settings(max_examples=300, deadline=None)
@given(text=PIECES)
def test_smollm_ids_equal_transformers_on_random_texts(
    text: str, smollm: Tokenizer, smollm_oracle: Any
) -> None:
    if not meets_a_digit_rule(text):
        assert smollm.encode(text) == smollm_oracle(text)["input_ids"]


@settings(max_examples=200, deadline=None)
@given(text=PIECES)
@example(text="½ ² Ⅷ ٣٤٥ a½²b  ½")
@example(text="a  5\n\n6 \t7")
def test_smollm_cuts_digits_first_as_published(
    text: str, smollm: Tokenizer, smollm_oracle: Any
) -> None:
    """White space before a digit, where transformers' GGUF reader forgets ``pre = smollm``.

    The published tokenizer.json and llama.cpp cut every digit off before the words are cut;
    transformers 5.23 does not, so ``"a  5"`` gives it two spaces where the model was trained on
    one token. With that one step put back into its own pipeline it agrees everywhere.
    """
    backend = smollm_oracle.backend_tokenizer
    forgotten = backend.pre_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), forgotten]
    )
    try:
        expected = smollm_oracle(text)["input_ids"]
    finally:
        backend.pre_tokenizer = forgotten
    assert smollm.encode(text) == expected


def test_smollm_difference_from_transformers_is_the_digits(
    smollm: Tokenizer, smollm_oracle: Any
) -> None:
    assert [smollm.token(id) for id in smollm.encode("a  5")] == ["a", "ĠĠ", "5"]
    assert smollm_oracle.tokenize("a  5") == ["a", "Ġ", "Ġ", "5"]


def test_smollm_chat_equals_transformers(
    smollm: Tokenizer, smollm_fields: dict[str, Any], smollm_oracle: Any
) -> None:
    source = vocabulary(smollm_fields).chat_template
    assert source is not None
    assert source == smollm_oracle.chat_template
    template = ChatTemplate(
        source, bos_token=smollm.bos_token, eos_token=smollm.eos_token, markup=smollm.markup
    )
    question = {"role": "user", "content": "What is the capital of France?"}
    system = {"role": "system", "content": "Answer in one word."}
    answer = {"role": "assistant", "content": "Paris."}
    for messages in ([question], [system, question], [question, answer, question]):
        expected = smollm_oracle.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert smollm.encode_segments(template.render(messages)) == expected
    assert len(smollm.encode_segments(template.render([question]))) == 37


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 49_151), max_size=40))
def test_smollm_streamed_text_equals_transformers(
    ids: list[int], smollm: Tokenizer, smollm_oracle: Any
) -> None:
    detokenizer = Detokenizer(smollm)
    streamed = "".join(map(detokenizer.push, ids)) + detokenizer.finish()
    assert streamed == smollm_oracle.decode(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_published_tokenizer_equals_transformers(text: str) -> None:
    ours = Tokenizer.load(AUSTEN)
    theirs = transformers.AutoTokenizer.from_pretrained(AUSTEN)
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.stop_ids == {theirs.eos_token_id}


def pipeline(directory: Path, config: dict[str, Any], change: Any) -> None:
    """The austen-moe tokenizer with parts changed, as a directory."""
    definition = json.loads((AUSTEN / "tokenizer.json").read_text())
    change(definition)
    (directory / "tokenizer.json").write_text(json.dumps(definition))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


FRAME = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
        name: {"id": name, "ids": [id], "tokens": [name]}
        for name, id in (("<|endoftext|>", 4087), ("<|im_end|>", 4089))
    },
}
CLASS = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
BOS = CLASS | {"bos_token": "<|endoftext|>"}


@pytest.mark.parametrize("frame", [None, FRAME], ids=["bare", "framed"])
@pytest.mark.parametrize(
    "config",
    [
        CLASS,
        BOS,
        BOS | {"add_bos_token": True},
        BOS | {"add_bos_token": False},
        BOS | {"add_eos_token": True},
        BOS | {"add_bos_token": True, "add_eos_token": True},
        CLASS | {"bos_token": {"__type": "AddedToken", "content": "<|endoftext|>"}},
        CLASS | {"add_bos_token": True},
    ],
    ids=str,
)
def test_what_surrounds_a_raw_prompt_equals_transformers(
    config: dict[str, Any], frame: Any, tmp_path: Path
) -> None:
    pipeline(tmp_path, config, lambda definition: definition.update(post_processor=frame))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    for text in ("", "a", "hello <|im_start|>there", "<|endoftext|>"):
        assert ours.encode(text) == theirs(text)["input_ids"], text


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_flags_of_added_tokens_equal_transformers(flag: str, tmp_path: Path) -> None:
    def change(definition: dict[str, Any]) -> None:
        for token in definition["added_tokens"]:
            token[flag] = True

    pipeline(tmp_path, CLASS, change)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    draw = random.Random(0)
    words = ["<think>", "</think>", "<|im_start|>", " ", "\n", "\u3000", "a", "_", "é", "."]
    for _ in range(300):
        text = "".join(draw.choices(words, k=draw.randrange(9)))
        assert ours.encode(text) == theirs(text)["input_ids"], text


def test_tokens_that_only_the_config_adds_equal_transformers(tmp_path: Path) -> None:
    more = {
        "4096": {"content": "<tts>", "special": True, "normalized": False},
        "4097": {"content": "<audio>", "special": False, "normalized": False},
        "4094": {"content": "<think>", "special": True, "normalized": False},
    }
    config = CLASS | {
        "added_tokens_decoder": more,
        "additional_special_tokens": ["<tool_call>", "the"],
    }
    pipeline(tmp_path, config, lambda _: None)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    text = "a<tts>b <audio> c<think>d<tool_call> the other"
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert {4096, 4097, 4094, 4090, ours.id_of("the")} <= set(ids)
    assert ours.vocab_size == len(theirs)
    assert ours.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module")
def sentence_piece() -> Any:
    """A small SentencePiece BPE with byte fallback, trained here."""
    module = pytest.importorskip("sentencepiece")
    sentences = (AUSTEN / "README.md").read_text().splitlines() * 3
    written = io.BytesIO()
    module.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=["<tool>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return module.SentencePieceProcessor(model_proto=written.getvalue())


def spm_fields(processor: Any) -> dict[str, Any]:
    ids = range(processor.vocab_size())
    kinds = [
        (processor.is_unknown, 2),
        (processor.is_control, 3),
        (processor.is_byte, 6),
        (processor.is_unused, 5),
    ]
    types = [next((kind for holds, kind in kinds if holds(id)), 1) for id in ids]
    tokens = [processor.id_to_piece(id) for id in ids]
    types[tokens.index("<tool>")] = 4
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [processor.get_score(id) for id in ids],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def write_gguf(path: Path, fields: dict[str, Any]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(fields["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(fields["tokenizer.ggml.pre"])
    writer.add_token_list(fields["tokenizer.ggml.tokens"])
    writer.add_token_scores(fields["tokenizer.ggml.scores"])
    writer.add_token_types(fields["tokenizer.ggml.token_type"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
        getattr(writer, f"add_{key}")(64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def spm_pair(
    sentence_piece: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Any]:
    fields = spm_fields(sentence_piece)
    path = tmp_path_factory.mktemp("gguf") / "spm.gguf"  # alone: a tokenizer.json would be read
    write_gguf(path, fields)
    return saved(tmp_path_factory.mktemp("spm"), fields), theirs_of(path)


@pytest.mark.parametrize("text", TEXTS)
def test_spm_ids_and_text_equal_transformers(text: str, spm_pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = spm_pair
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids)


@settings(max_examples=300, deadline=None)
@given(text=PIECES)
def test_spm_ids_equal_transformers_on_random_texts(
    text: str, spm_pair: tuple[Tokenizer, Any]
) -> None:
    ours, theirs = spm_pair
    assert ours.encode(text) == theirs(text)["input_ids"]


def test_spm_chat_equals_transformers(spm_pair: tuple[Tokenizer, Any]) -> None:
    """Only text at the very beginning is padded, also where segments are encoded apart."""
    ours, theirs = spm_pair
    messages = [
        {"role": "user", "content": "the model"},
        {"role": "assistant", "content": " is <tiny>"},
        {"role": "user", "content": "why?"},
    ]
    body = "{% for m in messages %}{{ '[INST] ' ~ m.content ~ ' [/INST]' ~ eos_token }}{% endfor %}"
    for source in (body, "{{ bos_token }}" + body):
        template = ChatTemplate(source, bos_token="<s>", eos_token="</s>", markup=ours.markup)
        expected = theirs.apply_chat_template(messages, chat_template=source, return_dict=False)
        assert ours.encode_segments(template.render(messages)) == expected


@settings(max_examples=300, deadline=None)
@given(text=PIECES)
def test_spm_ids_equal_sentencepiece(
    text: str, spm_pair: tuple[Tokenizer, Any], sentence_piece: Any
) -> None:
    """Its own library, where the two agree on purpose.

    It never reads control tokens from text, and it pads text that already begins with a space,
    which transformers' converter does not.
    """
    if not re.search(r"^ |^$|</s>|\n", text):
        assert spm_pair[0].encode(text) == [1, *sentence_piece.encode(text)]
