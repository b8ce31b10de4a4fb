"""Text to token ids and back, markup and content apart.

Owns tokenizer.json and tokenizer_config.json once loaded; not chat templates, and not which
words are markup: the caller says that. Invariant: content never yields the id of an added
token, whatever it says (one made of white space alone is not structure and is exempt).

One ``tokenizers.Tokenizer`` serves both: every added token is marked special in it and it is
told to read special tokens as ordinary text; a regular expression of our own finds the added
tokens where they may count. As in tokenizers, the leftmost and then the longest token wins,
``lstrip`` and ``rstrip`` take the neighbouring white space, and ``single_word`` wants a boundary.
One limit: a token with ``normalized`` is sought in the text as written, not after the
normaliser; for ASCII tokens that makes no difference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from flashmoe.errors import InputError, StoreError
from flashmoe.text.added import AddedToken, added_tokens, named_token
from flashmoe.text.detokenizer import assembler
from flashmoe.text.template import Segment

_FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_MEND = "copy it from the checkpoint again, or convert the checkpoint again"
_WORD_MARKS = (" ", "\u2581")
_SPACE = " \t\n\r\v\f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)  # White_Space of Unicode, which is Rust's; Python's str.strip takes four controls more


class Tokenizer:
    """The vocabulary of one model. Immutable, and safe to share between threads."""

    def __init__(self, definition: dict[str, Any], config: Mapping[str, Any]) -> None:
        """From the parsed tokenizer.json and tokenizer_config.json; see :meth:`load`."""
        model = _model(definition)
        vocabulary: dict[str, int] = model["vocab"]
        self._added = added_tokens(definition, config, vocabulary)
        self.decoder: object = definition.get("decoder")
        assembler(self.decoder)  # refuse early what the detokenizer cannot follow
        self._pads_first, pre_tokenizer = _without_first_pad(definition.get("pre_tokenizer"))
        self._backend = _backend(
            definition
            | {
                "added_tokens": [token.entry() for token in self._added],
                "pre_tokenizer": pre_tokenizer,
                "truncation": None,
                "padding": None,
            }
        )
        self._check_added()
        ids = {*vocabulary.values(), *(token.id for token in self._added)}
        self.vocab_size = max(ids, default=-1) + 1
        self.bos_token = named_token(config, "bos_token") or ""
        self.eos_token = named_token(config, "eos_token") or ""
        self._by_content = {token.content: token for token in self._added}
        self._specials = frozenset(token.id for token in self._added if token.special)
        unk_token = model.get("unk_token")  # what letters outside the vocabulary become
        unknown = self.id_of(unk_token) if isinstance(unk_token, str) else None
        self._structure = {t.id for t in self._added if t.content.strip()} - {unknown}
        self._pattern = _pattern(self._added)
        self._frame = self._framing()

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """From ``tokenizer.json`` and, where there is one, ``tokenizer_config.json``.

        Raises StoreError, naming the file, for one that is missing or malformed.
        """
        path = directory / _CONFIG
        config = _read(path) if path.exists() else None
        return cls.parse(_read(directory / _FILE), config, directory)

    @classmethod
    def parse(cls, definition: str, config: str | None, directory: Path) -> Tokenizer:
        """From the texts of the two files; ``directory`` is where they lie, for messages.

        Raises StoreError for one that is malformed.
        """
        described = {} if config is None else _object(config, directory / _CONFIG)
        content = _object(definition, directory / _FILE)
        try:
            return cls(content, described)
        except StoreError as error:
            raise StoreError(f"{directory / _FILE}: {error}") from error

    @property
    def markup(self) -> tuple[str, ...]:
        """The strings of all added tokens that are not white space, for ``ChatTemplate``."""
        return tuple(token.content for token in self._added if token.content.strip())

    @property
    def structure(self) -> Mapping[int, str]:
        """The added tokens that are not white space, by id: what no plain text ever yields."""
        return {token.id: token.content for token in self._added if token.content.strip()}

    @property
    def stop_ids(self) -> frozenset[int]:
        """The end-of-sequence id that the tokenizer's config names, if any."""
        end = self.id_of(self.eos_token)
        return frozenset() if end is None else frozenset({end})

    def id_of(self, token: str) -> int | None:
        """The id of a whole token as the vocabulary spells it."""
        return self._backend.token_to_id(token)

    def token(self, id: int) -> str | None:
        """The vocabulary's own spelling of ``id``; None for an id without a token."""
        return self._backend.id_to_token(_checked(id))

    def is_special(self, id: int) -> bool:
        """Whether the published tokenizer calls the token special."""
        return id in self._specials

    def encode(self, text: str) -> list[int]:
        """A raw prompt: added tokens count, and the tokenizer's own BOS and EOS are added.

        Equal to transformers' ``tokenizer(text)``. Raises InputError for text that is not
        Unicode (a lone surrogate).
        """
        before, after = self._frame
        return [*before, *self.encode_segments([Segment(text, markup=True)]), *after]

    def encode_segments(self, segments: Sequence[Segment]) -> list[int]:
        """A rendered conversation: added tokens count in markup segments alone; no BOS or EOS.

        Neighbouring plain text is encoded together, so that where a segment ends changes no id.
        """
        ids: list[int] = []
        for index, piece in enumerate(self._pieces(segments)):
            if isinstance(piece, AddedToken):
                ids.append(piece.id)
            elif self._pads_first and index == 0 and not piece.startswith(_WORD_MARKS):
                ids += self._plain(" " + piece)
            else:
                ids += self._plain(piece)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD.

        With ``skip_special``, tokens that the tokenizer calls special add nothing.
        """
        kept = [_checked(id) for id in ids if not (skip_special and id in self._specials)]
        return self._backend.decode(kept, skip_special_tokens=False)

    def _pieces(self, segments: Sequence[Segment]) -> list[str | AddedToken]:
        """Plain text and matched tokens in turn, with lstrip and rstrip applied."""
        pieces: list[str | AddedToken] = [""]  # plain text at every even place
        for segment in segments:
            parts = self._pattern.split(segment.text) if segment.markup else [segment.text]
            pieces[-1] = f"{pieces[-1]}{parts[0]}"
            for token, text in zip(parts[1::2], parts[2::2], strict=True):
                pieces += [self._by_content[token], text]
        for place in range(0, len(pieces), 2):
            pieces[place] = _stripped(pieces[max(place - 1, 0) : place + 2])
        return [piece for piece in pieces if piece]

    def _plain(self, text: str) -> list[int]:
        """``text`` without any added token."""
        try:
            encoding = self._backend.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):  # the library's words are of Python's types
            raise InputError(_not_unicode(text)) from None
        if self._structure.isdisjoint(encoding.ids):
            return list(encoding.ids)
        # A BPE that can spell a structural token from letters: cut the word so that it cannot.
        cuts = [0]
        for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if id in self._structure:
                if end - start < 2:
                    raise InputError(
                        f"the tokenizer reads {text[start:end]!r} as markup wherever it stands; "
                        "remove it from the text"
                    )
                cuts.append(start + 1)
        pieces = zip(cuts, [*cuts[1:], len(text)], strict=True)
        return [id for start, end in pieces for id in self._plain(text[start:end])]

    def _check_added(self) -> None:
        for token in self._added:
            found = self._backend.token_to_id(token.content)
            if found != token.id:
                raise StoreError(
                    f"the added token {token.content!r} should have id {token.id} and gets "
                    f"{found}: ids are missing before it; {_MEND}"
                )

    def _framing(self) -> tuple[list[int], list[int]]:
        """What the post-processor puts before and after a raw prompt.

        transformers goes by it alone; ``add_bos_token`` in the config counts for nothing.
        """
        plain = self._backend.encode("a", add_special_tokens=False).ids
        framed = self._backend.encode("a").ids
        for start in range(len(framed) - len(plain) + 1):
            if framed[start : start + len(plain)] == plain:
                return framed[:start], framed[start + len(plain) :]
        raise StoreError(f"the tokenizer's post_processor rewrites the text's own ids; {_MEND}")


def _not_unicode(text: object) -> str:
    """Why the library would not take a text."""
    if not isinstance(text, str):
        return f"{repr(text)[:80]} is no text"
    place = next((at for at, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), 0)
    return (
        f"the text holds a character that is not Unicode, {text[place : place + 1]!r} after "
        f"{text[max(place - 20, 0) : place]!r}: remove lone surrogates"
    )


def _stripped(around: Sequence[str | AddedToken]) -> str:
    """The one text in ``around`` without the white space that its neighbours take."""
    (place,) = (index for index, piece in enumerate(around) if isinstance(piece, str))
    text = str(around[place])
    for neighbour in around[:place]:
        if isinstance(neighbour, AddedToken) and neighbour.rstrip:
            text = text.lstrip(_SPACE)
    for neighbour in around[place + 1 :]:
        if isinstance(neighbour, AddedToken) and neighbour.lstrip:
            text = text.rstrip(_SPACE)
    return text


def _model(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` entry, once it is known to be a BPE that the library can be given.

    Affixes are refused because tokenizers 0.23 cuts merges by their length without a check, and
    a wrong one aborts the process.
    """
    model = definition.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if (
        not isinstance(model, dict)
        or model.get("type", "BPE") != "BPE"
        or not isinstance(vocabulary, dict)
        or not all(type(id) is int and 0 <= id < 1 << 32 for id in vocabulary.values())
    ):
        raise StoreError(
            f"the tokenizer has no BPE model with a vocabulary of ids; {_MEND}, or use a "
            "checkpoint with a BPE tokenizer"
        )
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(affix):
            raise StoreError(
                f"the tokenizer's {affix} is {repr(model[affix])[:80]}, which is not supported; "
                "use a checkpoint with a byte-level or SentencePiece tokenizer"
            )
    return model


def _checked(id: int) -> int:
    if not 0 <= id < 1 << 32:
        raise InputError(f"token id {id} is not one; ids run from 0 to the vocabulary's size")
    return id


def _pattern(tokens: Iterable[AddedToken]) -> re.Pattern[str]:
    """Finds added tokens, the longest first; one group, so that ``split`` keeps them."""
    forms = [
        rf"(?<!\w){re.escape(token.content)}(?!\w)"
        if token.single_word
        else re.escape(token.content)
        for token in sorted(tokens, key=lambda token: len(token.content), reverse=True)
    ]
    return re.compile(f"({'|'.join(forms) or '(?!)'})")


def _without_first_pad(entry: Any) -> tuple[bool, Any]:
    """Take ``prepend_scheme: first`` out of a pre-tokenizer; say whether it was there.

    It pads the text at offset 0. Text after a token is encoded on its own here, where its
    offset is 0 too, so that :meth:`Tokenizer.encode_segments` must do the padding.
    """
    if not isinstance(entry, dict):
        return False, entry
    inner = entry.get("pretokenizers")
    if isinstance(inner, list):
        rewritten = [_without_first_pad(step) for step in inner]
        pads = any(found for found, _ in rewritten)
        return pads, entry | {"pretokenizers": [step for _, step in rewritten]}
    if entry.get("type") == "Metaspace" and entry.get("prepend_scheme") == "first":
        return True, entry | {"prepend_scheme": "never"}
    return False, entry


def _backend(definition: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # the library raises plain Exception
        raise StoreError(f"the tokenizer cannot be built ({error}); {_MEND}") from error
    backend.encode_special_tokens = True
    return backend


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist; {_MEND}") from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is not JSON ({error}); {_MEND}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error}); {_MEND}") from error


def _object(text: str, origin: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{origin} is not JSON ({error}); {_MEND}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{origin} holds {text.strip()[:40]!r} instead of an object; {_MEND}")
    return content
