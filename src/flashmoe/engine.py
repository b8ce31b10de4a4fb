"""Engine: a store, loaded within a budget, ready to serve timelines.

Owns the order of loading: words first, then the plan, and only then the memory. Nothing of the
model changes afterwards; the streamer's cache does, which changes the speed and nothing else.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash
from threadpoolctl import ThreadpoolController

from flashmoe import kernels as kernel_sets
from flashmoe.errors import BudgetError, ClosedError, InputError
from flashmoe.model.decoder import Between, Decoder
from flashmoe.model.gpu import opening as gpu
from flashmoe.model.gpu.decoder import GpuDecoder
from flashmoe.model.observer import Observer
from flashmoe.model.state import State
from flashmoe.model.trunk import Trunk
from flashmoe.options import Budget, PrefixCache, Runtime, Sampling, or_defaults
from flashmoe.planning import on_device, outlay_of, plan_store, room_of, with_experts
from flashmoe.prefix.opening import prefixes_of
from flashmoe.quant import Array
from flashmoe.sampler import Sampler
from flashmoe.session import Session
from flashmoe.shape import ModelShape
from flashmoe.store.reader import Store
from flashmoe.stream import budget as budgets
from flashmoe.stream import memory, usage
from flashmoe.stream.counters import Counters
from flashmoe.stream.drives import Drive
from flashmoe.stream.ledger import Ledger
from flashmoe.stream.sizes import Outlay
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers.room import Room
from flashmoe.text.detokenizer import Detokenizer
from flashmoe.text.grammar import Grammars
from flashmoe.text.syntax import Syntax
from flashmoe.text.template import ChatTemplate
from flashmoe.text.tokenizer import Tokenizer
from flashmoe.words import Words


class Engine:
    """A loaded model. Open one with :meth:`open`, close it when done (or use ``with``).

    Sessions may live in several threads; their passes take turns.
    """

    def __init__(
        self,
        store: Store,
        words: Words,
        plan: budgets.Plan,
        shape: ModelShape,
        kernels: kernel_sets.Kernels,
        runtime: Runtime,
        observer: Observer,
        room: int,
        outlay: Outlay,
        prefix_cache: PrefixCache | None = None,
        vram: Room | None = None,
        *,
        pinned: bool = False,
    ) -> None:
        self.store = store
        self.shape = shape
        self.plan = plan
        self.kernels = kernels
        self.kv = outlay.kv
        self.vram = vram
        """What is planned of a GPU's memory, where one computes."""
        self._lock = threading.Lock()
        self._blas = ThreadpoolController()
        self._words = words
        self._room = room
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        manifest = store.manifest.to_json()
        identity = f"{manifest}{kernels.dtype}{shape.experts.top_k}"
        self.key = f"{xxhash.xxh3_64_hexdigest(identity.encode())}-{outlay.kv}"
        """Names store, dtype, experts a token and, behind the dash, how keys and values are held:
        what a saved timeline is valid for."""
        kept = store, plan, kernels, outlay, runtime, self.key, weakref.WeakMethod(self.reserve)
        self.prefixes = None if prefix_cache is None else prefixes_of(prefix_cache, *kept)
        """What is kept of timelines, and the bytes written for it; None without a cache."""
        # First the slots: their memory comes while the trunk is read.
        self.streamer = Streamer(store, plan.slots, runtime, plan.full_slots, shape.experts.top_k)
        self.decoder: Decoder | GpuDecoder
        try:
            if kernels.device is None or vram is None:
                trunk = Trunk(store.trunk(), kernels.dtype)
                self.decoder = Decoder(shape, trunk, kernels, observer)
            else:
                given = kernels.device, vram, self.streamer, observer
                self.decoder = gpu.opened(store, shape, *given)
        except BaseException:
            self.streamer.close()
            raise
        self.outlay = outlay
        # Slots that were asked for stay, whatever the plan leaves besides.
        least = plan.slots if pinned or vram else self.streamer.least_slots
        elsewhere = None if vram is None else vram.chunk_tokens
        self.ledger = Ledger(plan, outlay, least, runtime.chunk_tokens, elsewhere)
        self.runtime = replace(runtime, io_threads=self.streamer.io_threads)
        self._closed = False
        self._profile: str | None = None  # names the store in its usage profile, where one is kept
        if runtime.profile and runtime.io != "os":  # whose few slots are not worth warming
            self._profile = xxhash.xxh3_64_hexdigest(manifest.encode())
            self._warm(self._profile)

    def _warm(self, identity: str) -> None:
        """Have the experts that were chosen most in earlier runs read ahead."""
        found = usage.load(self.store.path, identity, self.shape.layers, self.shape.experts.count)
        if found is not None:
            self.streamer.warm(found.shares())
            self.decoder.warm(found.shares())

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        budget: Budget | None = None,
        kernels: str | kernel_sets.Kernels = "auto",
        experts_per_token: int | None = None,
        dtype: str = "float32",
        runtime: Runtime | None = None,
        observer: Observer | None = None,
        prefix_cache: PrefixCache | None = None,
        grammars: bool = False,
    ) -> Engine:
        """Load a store (``demo``: the one that ships with the package) within a budget.

        ``experts_per_token`` other than the checkpoint's own changes the answer; ``dtype``
        float64 is for oracles. ``prefix_cache`` keeps the state after prompts, replies and what
        they begin with, so that another timeline that begins alike does not compute it again.
        ``grammars`` plans for replies that are bound (:attr:`grammars`).

        Raises:
            StoreError: the store is missing, unfinished or damaged.
            BudgetError, DeviceError: the budget is below the floor; there is no such GPU.
            InputError: an option that does not fit this store.
        """
        budget, runtime = or_defaults(budget, runtime, prefix_cache)
        store = Store.open(path, runtime.store_dirs)
        chosen = kernel_sets.choose(kernels, dtype, runtime.resolved_threads)
        shape = with_experts(store.shape, experts_per_token)
        words = Words(store, grammars=grammars)
        outlay = outlay_of(store, budget, chosen, shape.experts.top_k)
        budget, vram = on_device(store, shape, budget, chosen, outlay)
        plan = plan_store(
            store,
            budget,
            runtime,
            kernels=chosen,
            experts_per_token=shape.experts.top_k,
            prefix_cache=prefix_cache,
        )
        room = room_of(plan, promised=budget.ram_bytes is not None)
        if vram is not None:  # whose timelines are there, and whose slots in RAM are pinned
            room, plan = plan.sessions, replace(plan, slots=plan.full_slots)
        return cls(
            store,
            words,
            plan,
            shape,
            chosen,
            runtime,
            observer or Observer(),
            room,
            outlay,
            prefix_cache,
            vram,
            pinned=budget.slots is not None,
        )

    def session(self) -> Session:
        """A new, empty timeline.

        Raises:
            BudgetError: the memory has no room for one more beside those still in use.
            ClosedError: the engine is closed.
        """
        self._check_open()
        if len(self._sessions) >= self._room:
            raise BudgetError(
                f"the memory has room for {self._room} sessions and as many are in use: let go "
                "of one, or open the engine with a larger budget (Budget.sessions plans for more)"
            )
        session = Session(self)
        self._sessions.add(session)
        return session

    def run(
        self, ids: Array, state: State, between: Between | None = None
    ) -> tuple[Array, Counters]:
        """Pass the first chunk of the ids (n,) that wait, for a timeline; the hidden states of its
        T tokens, and what it cost.

        Sessions take turns. A pass that fails, or ``between`` ends, leaves ``state`` as it was.
        """
        with self._alone(blas=len(ids) > 1 or self.kernels.name == "reference"):
            end = state.position + len(ids)
            chunk = ids[: self.ledger.chunk(state, state.position, end)]
            self._settle(len(chunk), state, state.position + len(chunk))
            before, mark = self.streamer.counters.snapshot(), state.mark()
            try:
                hidden = self.decoder.forward(chunk, state, self.streamer, between)
            except BaseException:
                state.rewind(mark)
                raise
            self.streamer.relieve()
            return hidden, self.streamer.counters.since(before)

    def reserve(self, state: State, tokens: int) -> None:
        """Make room for keys and values of a timeline that is about to have so many tokens."""
        with self._lock:
            self._settle(0, state, tokens)
            memory.release_freed()  # what the last pass had

    @contextmanager
    def lending(self, nbytes: int) -> Iterator[None]:
        """Between passes: so many bytes of the budget are for something else, for a while."""
        with self._lock:
            self.ledger.lend(nbytes)
        try:
            with self._lock:
                self._settle(0)
                memory.release_freed()  # what the last pass had
            yield
        finally:
            with self._lock:
                self.ledger.lend(-nbytes)

    def _settle(self, tokens: int, state: State | None = None, length: int = 0) -> None:
        """Have as many slots as the budget leaves beside a pass of ``tokens``, 0 for none, and a
        timeline that will have ``length``."""
        if state is not None:
            self.ledger.charge(state, length)
        ceiling = self.streamer.extent.ceiling
        slots = self.ledger.settle(tokens, ceiling)
        if slots > ceiling:
            memory.release_freed()  # what slots are to take instead
        if slots != ceiling:
            self.streamer.resize(slots)

    def head(self, hidden: Array) -> Array:
        """Logits (T, vocabulary) of hidden states (T, hidden)."""
        with self._alone(blas=self.kernels.name == "reference"):
            return self.decoder.logits(hidden)

    @contextmanager
    def _alone(self, *, blas: bool) -> Iterator[None]:
        """One pass at a time, with BLAS, where it is used, on one thread: how it splits a product
        over more would show in the last bits. Asking for that takes 0.1 ms."""
        limited = self._blas.limit(limits=1, user_api="blas") if blas else nullcontext()
        with self._lock, limited:
            self._check_open()
            yield

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the engine of {self.store.path} is closed: open the store again")

    @property
    def tokenizer(self) -> Tokenizer:
        """The store's tokenizer.

        Raises:
            InputError: the checkpoint came without one.
        """
        if self._words.tokenizer is None:
            raise InputError(
                f"{self.store.path} has no tokenizer.json: put the checkpoint's own beside its "
                "weights and convert again"
            )
        return self._words.tokenizer

    @property
    def template(self) -> ChatTemplate:
        """The store's chat template.

        Raises:
            InputError: the checkpoint came without one.
        """
        if self._words.template is None:
            raise InputError(
                f"{self.store.path} has no chat template: give the prompt as it is (--raw)"
            )
        return self._words.template

    @property
    def syntax(self) -> Syntax:
        """The markup of replies to prompts of this template; none without a tokenizer."""
        return self._words.syntax

    @property
    def grammars(self) -> Grammars:
        """What binds replies: JSON schemas, regular expressions, calls of tools.

        Unless the engine was opened for it, the first use takes its memory from the experts.

        Raises:
            InputError: the checkpoint came without a tokenizer.
            BudgetError: the budget has no room for it.
        """
        tokenizer, made = self.tokenizer, self._words.grammars
        assert made is not None, tokenizer
        if self._words.grammars_counted:  # for good; a pass that is under way holds the lock
            return made
        with self._lock:
            if not self._words.grammars_counted:
                self.ledger.give_away(made.needed_bytes, "binding replies")
                self._settle(0)
                self._words.grammars_counted = True
        return made

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a reply."""
        return self._words.stop_ids

    @property
    def counters(self) -> Counters:
        """What the streamer has done so far; differences make the cost of a step."""
        return self.streamer.counters.snapshot()

    @property
    def drives(self) -> tuple[Drive, ...]:
        """What has been read from each of the store's directories."""
        return self.streamer.drives.use()

    def sampling(self, **overrides: Any) -> Sampling:
        """The store's own sampling defaults, with some fields replaced."""
        return replace(self._words.generation.sampling, **overrides)

    def sampler(self, sampling: Sampling, ids: Sequence[int]) -> Sampler:
        """A sampler that has seen ``ids`` and never draws an id that has no word."""
        tokenizer = self._words.tokenizer
        size = tokenizer.vocab_size if tokenizer else self.shape.vocabulary
        words, threads = min(size, self.shape.vocabulary), self.runtime.resolved_threads
        return Sampler(sampling, ids, vocab_size=words, threads=threads)

    def detokenizer(self, stop: tuple[str, ...]) -> Detokenizer | None:
        """A fresh detokenizer; None where the store has no words (then no stop strings)."""
        if stop or self._words.tokenizer:
            return Detokenizer(self.tokenizer, stop)
        return None

    def empty_cache(self) -> None:
        """Forget every expert in memory: the next token finds them all cold.

        The answer stays; this is for measurements. From here on no usage profile is kept.
        """
        with self._lock:
            self._check_open()
            self._profile = None
            self.decoder.empty()
            self.streamer.empty()

    def keep_profile(self) -> None:
        """Write down which experts were chosen (see :class:`flashmoe.options.Runtime`), once."""
        with self._lock:
            identity, self._profile = self._profile, None
            if identity is not None:
                usage.save(self.store.path, identity, self.streamer.usage)

    def close(self) -> None:
        """End the reading threads and give slots and trunk back, once a running pass has ended.

        Keeps the usage profile, and what the prefix cache has still to write. May be repeated.
        """
        if self.prefixes is not None:
            self.prefixes.close()
        self._words.close()
        with self._lock:
            if not self._closed:
                self.decoder.close()
                del self.decoder  # the weights
                self._closed = True
            self.streamer.close()
        if self.kernels.device is not None:
            self.kernels.device.release()
        self.keep_profile()  # last: where it fails, no reader is left open

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
