"""Where in a prompt a state is kept: pure policy, from positions alone.

Owns the choice. Keys and values can be kept for every token, but a recurrent state is as large as
those of thousands of tokens (60 MiB for 35B, where 256 tokens are 5 MiB), so that positions are
chosen:

- ends of chunks, which cost no pass of their own, the rarer the further they are from the prompt's
  end: the first behind each of the last two multiples of s, 2 s, 4 s, … Where chunks are short, a
  prompt that differs from this one in its last x tokens passes at most 3 x of those before them
  again, or 2 s;
- marks that the caller gives (the ends of a system prompt or of turns), and the branch where a
  prompt leaves the path of an earlier one: there a pass is cut in two, at a multiple of 64 tokens,
  as law 1 wants it (where chunks end never shows in the answer).

Invariant: no cut makes a pass of a single token, which would be a decode step with other kernels.
"""

from __future__ import annotations

from collections.abc import Iterable

from flashmoe.kernels.reference import CHUNK

CUT_TOKENS = CHUNK
"""A pass may end at multiples of this without a trace in the answer."""

APART_TOKENS = 64
"""What is shorter is not kept, nor a second state so close to the last along the way, or at the
end of a reply: these tokens pass with others anyway."""

MARKS_MOST = 4
"""Marks of one prompt that are heeded: each is one more pass over all its experts."""

KEYS_A_STATE = 4
"""A state is kept where it weighs at most so many times what the tokens since the last weigh."""

SPACING_LEAST = 256


def spacing(state_bytes: int, token_bytes: int) -> int:
    """The least distance of states that are kept along the way, in tokens: a power of two.

    1,024 for the 35B shape with keys and values of 16 bits, 2,048 for 397B, 256 without recurrent
    layers.
    """
    tokens = SPACING_LEAST
    while tokens * token_bytes * KEYS_A_STATE < state_bytes and tokens < 1 << 14:
        tokens *= 2
    return tokens


def along(start: int, total: int, apart: int) -> set[int]:
    """Positions in a pass to ``total``; the next end of a chunk behind each of them is due."""
    wanted, step = set(), apart
    while step < total:
        newest = (total - APART_TOKENS) // step * step
        wanted |= {place for place in (newest, newest - step) if place > start}
        step *= 2
    return wanted


def cuts(start: int, total: int, marks: Iterable[int], branch: int) -> set[int]:
    """Where a pass from ``start`` to ``total`` is cut, whatever its chunks are.

    ``branch`` is the last multiple of 64 up to which the path was known before.
    """
    wanted = sorted({mark // CUT_TOKENS * CUT_TOKENS for mark in marks})
    wanted = [mark for mark in wanted if start + APART_TOKENS <= mark <= total - 2]
    if len(wanted) > MARKS_MOST:  # the system prompt, and the latest turns
        wanted = [wanted[0], *wanted[1 - MARKS_MOST :]]
    if start + APART_TOKENS <= branch <= total - 2:
        wanted.append(branch)
    return set(wanted)


def is_kept(before: int, position: int, total: int, due: set[int], cut: set[int]) -> bool:
    """Whether a state is kept after a chunk from ``before`` to ``position``; ``due`` is
    :func:`along`'s, ``cut`` is :func:`cuts`', of a pass to ``total``."""
    if position in cut:
        return True
    near = any(abs(position - one) < APART_TOKENS for one in (*cut, total))
    return position % CUT_TOKENS == 0 and not near and any(before < one <= position for one in due)
