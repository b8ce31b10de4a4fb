"""A text file as token ids, cut into windows.

Owns reading and encoding. The file is encoded as transformers' ``tokenizer(text)`` would, so that
figures can be compared: added tokens that it spells (``<|endoftext|>`` between two texts) are
tokens, and the vocabulary's own BOS, where it has one, comes first, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flashmoe.apps.eval.windows import Window, windows
from flashmoe.errors import InputError
from flashmoe.quant import Array
from flashmoe.stream.units import format_bytes
from flashmoe.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Document:
    """A text's ids (n,), of which ``windows`` predict ``scored_bytes`` bytes of UTF-8."""

    path: Path
    ids: Array
    context: int
    stride: int
    windows: list[Window]
    scored_bytes: int

    @classmethod
    def read(
        cls, path: Path, tokenizer: Tokenizer, context: int, stride: int, most: int | None
    ) -> Document:
        """The text of a file; ``most`` bounds the number of windows.

        Raises:
            InputError: it cannot be read, is not UTF-8, or is too short.
        """
        ids = tokenizer.encode(read_text(path))
        found = windows(len(ids), context, stride, most)
        predicted = tokenizer.decode(ids[1 : found[-1].end + 1])
        tokens = np.array(ids, np.int32)
        return cls(path, tokens, context, stride, found, len(predicted.encode()))

    @property
    def scored_tokens(self) -> int:
        """How many tokens are predicted."""
        return sum(window.scored for window in self.windows)

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return max(window.tokens for window in self.windows)

    @property
    def passing_tokens(self) -> int:
        """How many pass through the model, those that windows have in common counted in each."""
        return sum(window.tokens for window in self.windows)


LARGEST_BYTES = 64 << 20
"""Of a file: its ids take several times that, beside what the models were promised."""


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > LARGEST_BYTES:
        raise InputError(
            f"{path} is larger than {format_bytes(LARGEST_BYTES)}: take a part of it "
            "(head -c 10M FILE > PART)"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line} is not UTF-8 (byte 0x{data[error.start]:02X}, "
            f"{error.start} bytes from the file's beginning): convert the file first (iconv)"
        ) from error
