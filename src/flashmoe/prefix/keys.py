"""What a kept prefix is called: by the model that it is valid for and the tokens that it is of.

Owns the digests. Whoever finds a prefix by its name still compares the tokens themselves, so that
two prompts with one digest would cost time and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from flashmoe.prefix.places import CUT_TOKENS

PATH_TOKENS = CUT_TOKENS
"""A path is known by a digest every so many tokens: as often as a pass may end, so
that a branch is found to the last place where one could have been kept."""

DIGEST_CHARACTERS = 32
PATH_CHARACTERS = 16


def identity(model: str, *details: str) -> str:
    """A directory's name for what is valid for ``model`` (``Engine.key``) and computed alike.

    ``details`` are what decides the last bits besides, such as the kernels and their version.
    """
    whole, _, kind = model.partition("-")
    digest = hashlib.blake2b("\n".join((whole, *details)).encode(), digest_size=8)
    return f"{digest.hexdigest()}-{kind}"


def digests(ids: Sequence[int], positions: Iterable[int]) -> list[str]:
    """A digest of the first so many tokens, for each of the ascending ``positions``."""
    tokens, done, found = np.asarray(ids, np.dtype("<i4")), 0, []
    running = hashlib.blake2b(digest_size=DIGEST_CHARACTERS // 2)
    for position in positions:
        running.update(tokens[done:position].tobytes())
        done = position
        found.append(running.copy().hexdigest())
    return found


def path(ids: Sequence[int]) -> list[str]:
    """Short digests of the first 64, 128, … tokens, as far as ``ids`` go."""
    places = range(PATH_TOKENS, len(ids) + 1, PATH_TOKENS)
    return [digest[:PATH_CHARACTERS] for digest in digests(ids, places)]
