"""The prefix cache of an engine: keeps states, finds the longest that fits, and puts it in place.

Owns what joins memory, directory and writer, and what becomes of a piece that is damaged: it is
refused with a line in the log, removed, and its tokens are computed again. *When* a state is kept
is ``places``' and ``trail``'s.

Two prompts share the blocks of their common beginning: a block is named by its content, so it is
held and written once, and a state goes with the very bits that it was computed with. A state is
named by its tokens, and whoever finds one compares them all.

Invariant: a timeline that resumes is, bit for bit, as one was that got the same tokens; where that
cannot be had it begins at the first token. Safe for several threads.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from flashmoe.errors import InputError, reason
from flashmoe.model.state import State
from flashmoe.options import PrefixCache
from flashmoe.prefix import entry, keys, pieces, places
from flashmoe.prefix.directory import Directory
from flashmoe.prefix.memory import Memory, NoRoom
from flashmoe.prefix.writing import Writing
from flashmoe.quant import Array
from flashmoe.shape import ModelShape
from flashmoe.stream.units import format_bytes

_log = logging.getLogger(__name__)

PATHS_MOST = 1 << 15
"""Digests of known paths that are remembered, 64 tokens each: four megabytes."""

STAGED_STATES, STAGED_BLOCKS = 2, 8
"""What may wait to be written where ``memory_bytes`` is not given."""

_STATE = re.compile(r"state-([0-9]+)-[0-9a-f]{32}\Z")


def memory_bytes(
    options: PrefixCache, shape: ModelShape, context_tokens: int, float_bytes: int, kv: str
) -> int:
    """The most that the cache holds in memory, for a model's dimensions.

    Raises:
        InputError: ``memory_bytes`` is too little for a single state.
    """
    state = pieces.state_bytes(shape, context_tokens, float_bytes, kv)
    block = pieces.block_bytes(shape, float_bytes, kv)
    if options.memory_bytes is None:
        return STAGED_STATES * state + STAGED_BLOCKS * block
    if options.memory_bytes < state + block:
        raise InputError(
            f"PrefixCache.memory_bytes is {options.memory_bytes}; one state of this model takes "
            f"{format_bytes(state + block)}: give at least {state + block}"
        )
    return options.memory_bytes


class Prefixes:
    """What is kept of the timelines of one engine, and of others with the same directory."""

    def __init__(
        self,
        options: PrefixCache,
        model: str,
        limit_bytes: int,
        state_bytes: int,
        token_bytes: int,
        reserve: Callable[[State, int], None],
        about: Mapping[str, str] | None = None,
    ) -> None:
        """``model`` is :func:`flashmoe.prefix.keys.identity`'s, ``limit_bytes`` is
        :func:`memory_bytes`', ``state_bytes`` are the recurrent layers', ``token_bytes`` those of
        a token's keys and values. ``reserve`` makes room for those of so many tokens in a state.
        ``about`` is what is noted of the model beside its pieces, for a person who looks.

        Raises:
            InputError: the directory cannot be used.
        """
        self._model = model
        self._reserve = reserve
        self._memory = Memory(limit_bytes)
        self._directory: Directory | None = None
        self._writing: Writing | None = None
        if options.directory is not None:
            self._directory = Directory(options.directory, model, options.disk_bytes, about)
            self._writing = Writing(self._memory, self._directory)
        self.spacing_tokens = places.spacing(state_bytes, token_bytes)
        self._paths: dict[str, None] = {}
        self._noted: set[str] = set()
        self._lock = threading.RLock()  # the collector may close a reply while it is held
        self._closed = False
        self._told = False

    @property
    def written_bytes(self) -> int:
        """Bytes written to the directory so far; :meth:`flush` first for those on their way."""
        return self._directory.written_bytes if self._directory else 0

    def flush(self) -> None:
        """Wait until all that was kept is on disk, or the disk has refused it."""
        if self._writing is not None:
            self._writing.flush()

    def close(self) -> None:
        """Write what waits, and keep nothing from here on. Repeating it is fine."""
        self._closed = True
        if self._writing is not None:
            self._writing.close()

    def branch(self, ids: Sequence[int]) -> int:
        """The last multiple of 64 up to which some earlier timeline went the same way."""
        with self._lock:
            self._learn()
            path = keys.path(ids)
            known = [index for index, digest in enumerate(path, 1) if digest in self._paths]
        return known[-1] * keys.PATH_TOKENS if known else 0

    def resume(self, ids: Sequence[int], most: int, state: State) -> tuple[int, list[str]]:
        """Put the longest kept prefix of at most ``most`` tokens in place of an empty state.

        Returns its length and its blocks; (0, []) and an empty state where there is none.
        """
        for position, name in self._candidates(ids, most):
            if self._closed:
                break
            try:
                return position, self._restore(name, ids, position, state)
            except FileNotFoundError:
                _log.info("%s has been removed meanwhile", name)  # by another process, for room
                self._forget(name)
            except ValueError as error:
                _log.warning("%s of the prefix cache is refused, since %s", name, error)
                self._forget(name)
            except (OSError, NoRoom) as error:
                _log.warning("%s of the prefix cache is not used: %s", name, reason(error))
            except BaseException:
                state.clear()
                raise
            state.clear()
        return 0, []

    def keep(
        self, ids: Sequence[int], state: State, blocks: Sequence[str]
    ) -> tuple[list[str], int]:
        """Keep a timeline's state as it is; ``blocks`` are those that it is known to have.

        Returns its blocks, and how many bytes are on their way to the disk for it.
        """
        position = state.position
        (digest,) = keys.digests(ids, [position])
        name = f"state-{position}-{digest}"
        if self._closed:
            return list(blocks), 0
        path = keys.path(ids[:position])
        with self._lock:
            self._note(path)
        if self._has(name):
            self._touch(name, self._head(name).blocks)
            return list(blocks), 0
        return self._store(name, ids, state, blocks, "".join(path))

    # --- keeping

    def _store(
        self, name: str, ids: Sequence[int], state: State, known: Sequence[str], path: str
    ) -> tuple[list[str], int]:
        count, handed = pieces.whole_blocks(state, state.position), 0
        names: list[str] = []
        plain = pieces.state_arrays(state, ids)
        if not self._fits(count, state, sum(array.nbytes for array in plain.values())):
            return list(known), 0
        gone = set(self._touch(None, known[:count]))
        for index in range(count):
            block = known[index] if index < len(known) else ""
            if not block or block in gone:
                arrays = pieces.block_arrays(state, index)
                head = entry.Head("block", self._model, (index + 1) * pieces.BLOCK_TOKENS)
                made = self._made(head, arrays)
                if made is None:
                    return names, handed
                block = f"block-{entry.content(made)}"
                if self._has(block):
                    self._memory.drop(made)
                    self._touch(None, [block])
                else:
                    handed += self._stage(block, made, names)
            names.append(block)
        made = self._made(
            entry.Head("state", self._model, state.position, tuple(names), path), plain
        )
        if made is not None:
            handed += self._stage(name, made, names)
            self._memory.touch([name, *names])
        return names, handed

    def _made(self, head: entry.Head, arrays: dict[str, Array]) -> Array | None:
        plan = entry.layout(head, arrays)
        piece = self._memory.take(plan.nbytes)
        if piece is not None:
            try:
                entry.encode(plan, arrays, piece)
            except BaseException:
                self._memory.drop(piece)
                raise
        return piece

    def _stage(self, name: str, piece: Array, blocks: Sequence[str]) -> int:
        """Have a piece in memory and, where there is a disk, on its way there."""
        writing = self._writing
        if writing is None or writing.refused:
            self._memory.keep(name, piece, waiting=False)
            return 0
        self._memory.keep(name, piece, waiting=True)
        try:
            writing.add(name, blocks)
        except BaseException:
            self._memory.written(name)
            raise
        return len(piece)

    def _fits(self, blocks: int, state: State, own_bytes: int) -> bool:
        """Whether a whole timeline is within the limit: parts of one are of no use."""
        block = sum(array.nbytes for array in pieces.block_arrays(state, 0).values())
        limit = self._memory.limit_bytes if self._directory is None else self._directory.limit_bytes
        fits = blocks * (block + pieces.HEAD_BYTES) + own_bytes + pieces.HEAD_BYTES <= limit
        if not fits and not self._told:
            self._told = True
            _log.warning(
                "a timeline of %d tokens is not kept: it does not fit in a prefix cache of %s",
                state.position,
                format_bytes(limit),
            )
        return fits

    # --- finding

    def _candidates(self, ids: Sequence[int], most: int) -> Iterator[tuple[int, str]]:
        """States whose names say that they begin ``ids``, the longest first.

        One that ends inside a piece of a prompt, and leaves a single token, is left out: that
        token would pass as a decode step does, by other kernels than those of its piece.
        """
        names = self._memory.names()
        names += self._directory.names() if self._directory else []
        found = {name: int(match[1]) for name in names if (match := _STATE.match(name))}
        alone = {len(ids) - 1} if len(ids) % places.CUT_TOKENS == 1 else set()
        usable = sorted({p for p in found.values() if 0 < p <= most} - alone)
        for position, digest in reversed([*zip(usable, keys.digests(ids, usable), strict=True)]):
            if (name := f"state-{position}-{digest}") in found:
                yield position, name

    def _restore(self, name: str, ids: Sequence[int], position: int, state: State) -> list[str]:
        """Put a state in place; where that fails the caller clears what has come of it.

        Raises:
            OSError, ValueError: a piece is gone, damaged, or not what its name says.
            NoRoom: there is no memory for it just now.
        """
        head, arrays = entry.decoded(self._load(name))
        if (head.kind, head.model, head.position) != ("state", self._model, position):
            raise ValueError("it is of another timeline or model")
        if not np.array_equal(arrays.get("ids", ()), ids[:position]):
            raise ValueError("it is of other tokens")
        if len(head.blocks) != pieces.whole_blocks(state, position):
            raise ValueError("it names more or fewer blocks than it has")
        self._reserve(state, position)
        pieces.place_state(state, position, arrays)
        del arrays  # let go before the blocks come: the memory is planned for one at a time
        for index, block in enumerate(head.blocks):
            try:
                piece = self._load(block)
                if block != f"block-{entry.content(piece)}":
                    raise ValueError("it does not match its name")
                pieces.place_block(state, index, entry.decoded(piece)[1])
            except ValueError as error:
                self._forget(block)
                raise ValueError(f"its {block} cannot be used: {error}") from None
        self._touch(name, head.blocks)
        return list(head.blocks)

    def _load(self, name: str) -> Array:
        """A piece, from memory or else from disk by way of it.

        Raises:
            OSError: it is not there, or cannot be read.
            ValueError: it is longer than any, or changes its length.
        """
        piece = self._memory.get(name)
        if piece is not None:
            return piece
        if self._directory is None:
            raise FileNotFoundError(name)
        size = self._directory.size(name)
        if size > self._memory.limit_bytes:
            raise ValueError("it is larger than the memory for it")
        made = self._memory.take(size)
        if made is None:
            raise NoRoom("other threads have all the memory for it")
        try:
            if not self._directory.read(name, made):
                raise ValueError("it was cut short while it was read")
        except BaseException:
            self._memory.drop(made)
            raise
        self._memory.keep(name, made, waiting=False)
        return made

    def _forget(self, name: str) -> None:
        self._memory.forget(name)
        if self._directory is not None:
            self._directory.remove(name)

    # --- what is known

    def _has(self, name: str) -> bool:
        if name in self._memory:
            return True
        if self._directory is None:
            return False
        try:
            return self._directory.size(name) > 0
        except OSError:
            return False

    def _head(self, name: str) -> entry.Head:
        """A state's head; an empty one where that cannot be had."""
        piece = self._memory.get(name)
        try:
            if piece is not None:
                return entry.head_of(piece)
            if self._directory is not None:
                return self._directory.head(name)
        except (OSError, ValueError) as error:
            _log.info("%s of the prefix cache cannot be read: %s", name, error)
        return entry.Head("state", self._model, 0)

    def _touch(self, state: str | None, blocks: Sequence[str]) -> list[str]:
        """A state and its blocks were used; those blocks that are neither here nor on disk."""
        self._memory.touch([*([state] if state else []), *blocks])
        missing = list(blocks)
        if self._directory is not None and not (self._writing and self._writing.refused):
            missing = self._directory.touch(state, blocks)
        return [name for name in missing if name not in self._memory]

    def _learn(self) -> None:
        """Note the paths of states that other processes, or earlier ones, have kept."""
        for name in self._directory.names() if self._directory else []:
            if name not in self._noted and _STATE.match(name):
                self._noted.add(name)
                path, size = self._head(name).path, keys.PATH_CHARACTERS
                self._note([path[at : at + size] for at in range(0, len(path), size)])

    def _note(self, path: Sequence[str]) -> None:
        for digest in path:
            self._paths.pop(digest, None)
            self._paths[digest] = None
        while len(self._paths) > PATHS_MOST:
            del self._paths[next(iter(self._paths))]
