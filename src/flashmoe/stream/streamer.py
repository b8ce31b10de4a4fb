"""Experts on their way from SSD to the arithmetic: hint, hold, release.

Joins ``cache`` (which slot), ``slots`` (whose bytes) and ``reads`` (how they come), and counts
what is asked. Decides no policy and does no arithmetic. One thread uses a streamer at a time.

A routing is what a layer asks for one token or one chunk. :meth:`Streamer.hint` starts its reads
early; :meth:`Streamer.hold` yields its experts: a token's in memory first, then as they arrive, a
chunk's in file order. A routing may want more experts than there are slots: they pass through in
file order too, one slot is enough.

Invariant: a slot is never given to another expert while it is being read into, waited for by the
open hold, or used by its consumer. When hold has been left, by whatever way, none of its reads
is under way and nothing is pinned but hinted reads.

An interrupt may come between any two bytecodes, so between two steps that belong together.
``_sound`` is False while such steps are under way. Whoever comes next and finds it so, or finds
a hold that was never left, believes nothing: all reads are ended and all slots are free again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from flashmoe.errors import ReadError
from flashmoe.options import Runtime
from flashmoe.quant import Array
from flashmoe.store.reader import Store
from flashmoe.stream import depth
from flashmoe.stream.ahead import AT_ONCE, Ahead
from flashmoe.stream.arrivals import Arrivals, Batch
from flashmoe.stream.backing import Backing
from flashmoe.stream.cache import Cache
from flashmoe.stream.counters import Counters
from flashmoe.stream.direct import DirectReader, Urgency
from flashmoe.stream.drives import Drives
from flashmoe.stream.expectation import Expectation
from flashmoe.stream.extent import Extent
from flashmoe.stream.guesses import Guesses
from flashmoe.stream.holding import Hold
from flashmoe.stream.lending import Lending
from flashmoe.stream.passage import Passage
from flashmoe.stream.picture import Picture
from flashmoe.stream.prefetch import Prefetch
from flashmoe.stream.pressure import Relief
from flashmoe.stream.reads import Reads
from flashmoe.stream.records import Records, is_wide, token_count
from flashmoe.stream.slots import Slots
from flashmoe.stream.usage import Usage
from flashmoe.stream.warmup import Warmup, worth_reading


class Streamer:
    """The experts of ``store`` through ``slots`` slots, each as large as the largest record.

    ``least`` of these, 0 for all, are always granted: see :meth:`resize`. A token chooses ``top_k``
    experts of a layer, 0 for as many as the published model's.

    Raises:
        BudgetError: the system does not grant memory for the slots.
        ReadError: a file of the store cannot be opened.
    """

    def __init__(
        self, store: Store, slots: int, runtime: Runtime, least: int = 0, top_k: int = 0
    ) -> None:
        entries = store.manifest.layers
        self.counters = Counters()
        self._store = store
        self.hints = runtime.hints
        self._slots = Slots(slots, max(entry.layout.record_bytes for entry in entries))
        self._top_k = top_k or store.shape.experts.top_k
        # Of two tokens, so that what the one before has asked for need not leave at once.
        self._lasting = min(least or slots, 2 * self._top_k)
        self.extent = Extent(self._slots, self._lasting)
        self._relief = Relief(slots, self._lasting, self._slots.slot_bytes)
        self.usage = Usage(len(entries), store.shape.experts.count)
        self._open = True
        self.io_threads = depth.choose(store, self._slots, runtime)
        self._reader = DirectReader(self.io_threads)
        self._reader.into(self._slots.arena, self._slots.slot_bytes)
        try:
            self.drives = Drives(
                self._reader, store, self.io_threads, direct=runtime.io == "direct"
            )
            self._records = Records(store, self._reader, self.drives)
        except ReadError:
            self._reader.close()
            raise
        self._forget()
        self._backing = Backing(self._slots)

    def _forget(self) -> None:
        """Every slot is free, nothing is asked or read, no hold is open."""
        count, top_k = self._store.shape.experts.count, self._top_k
        self._cache = Cache(self._slots.count, len(self._records), top_k)
        policy = Prefetch(len(self._records), top_k)
        self._guesses = Guesses(policy, self._cache, self.counters)
        self._slots.clear()
        self.extent.begin(self._cache)
        self._warmup = Warmup(self._cache, self._slots, self._records, self._reader)
        places = self._cache, self._slots, self._records, self._reader
        self._reads = Reads(*places, self._warmup, self._guesses, self.counters)
        self.lending = Lending(*places[:3], self._warmup, self._reads, self._lasting)
        shared = self._reads, self._guesses
        self._passage = Passage(*places, *shared, self.counters, top_k)
        self.picture = Picture(count, self._cache, self._reads, self._warmup, self._passage)
        self._ahead = Ahead(Expectation(count), self._cache, self._warmup, *shared, top_k)
        # By layer: the experts of its last hint, unless held since, and which had a slot then.
        self._asked: dict[int, dict[int, bool]] = {}
        self._hold: Hold | None = None  # the open one
        self._sound = True

    def hint(self, layer: int, ids: Array, elsewhere: Collection[int] = ()) -> None:
        """Start reading what a routing will hold and is not in memory, as far as slots allow.

        Such reads wait for all that hold asks. They never displace an expert of the same
        routing, nor one that is held. Asking makes an expert recent in the cache, as in hold.
        Does nothing where ``Runtime.hints`` is off.
        """
        if not self.hints:
            return
        experts = self._routed(layer, ids, elsewhere)
        hold, tickets = self._hold, self._reads.tickets
        self._sound = False
        if hold is not None and hold.layer == layer:
            experts = [expert for expert in experts if expert not in hold.wanted]
        self._warmup.precede(layer, experts, tickets)
        if tickets:
            awaited = () if hold is None else hold.coming
            others = [key for key, ticket in tickets.items() if ticket not in awaited]
            self._reads.put_away(others, block=False)
        self._asked[layer], present = self._ask(layer, experts, ids)
        if len(present) < len(experts):
            self._guesses.busy()
            here = frozenset(present)
            absent = [expert for expert in experts if expert not in here]
            self._cache.pin_all(layer, present)
            self._reads.let_go()
            most = self._passage.window if is_wide(ids) else None
            self._reads.start(layer, absent, self._note(), Urgency.HINTED, most=most)
            self._cache.unpin_all(layer, present)
        else:
            self._reads.let_go()
        self._ahead.guess(self._note())
        self._sound = True

    def foresee(self, layer: int, rank: Callable[[], Array]) -> None:
        """Guess what a layer will choose, and read some of it while the disk would be idle.

        ``rank`` gives ids of its experts, (n,), the likeliest first; it is called by the next
        hint or hold, or not at all where no guess pays. The reads start when the next routing has
        its own, and those that have not started when ``layer`` itself is hinted or held, and
        wants others, are dropped. A guess is no use of an expert. Does nothing where
        ``Runtime.hints`` is off.
        """
        self._ahead.forget()
        if self.hints and self._cache.resident(layer) < self._records.count(layer):
            self._guesses.foresee(layer, rank)
        else:
            self._guesses.forget()

    def expect(
        self,
        layer: int,
        tokens: int,
        early: Callable[[], Array],
        *,
        at_once: bool = False,
    ) -> None:
        """Read ahead what a chunk of so many tokens is expected to want of its next layer.

        ``early`` gives what that layer would choose for a sample of the tokens, (sample, top_k);
        it is called while the layer before holds, or not at all. The reads start when that hold has
        asked for all that it needs, or ``at_once``; those that have not started when ``layer``
        itself is hinted or held, and wants others, are dropped. Nothing of it is a use. Does
        nothing where hints are off.
        """
        self._guesses.forget()
        if not self.hints or self._cache.resident(layer) == self._records.count(layer):
            self._ahead.forget()
            return
        self._ahead.expect(layer, tokens, early)
        if at_once and self._hold is None and self._sound:
            self._sound = False
            self._ahead.pursue(self._note(), AT_ONCE)
            self._sound = True

    def hold(self, layer: int, ids: Array, elsewhere: Collection[int] = ()) -> Arrivals:
        """Keep the experts of a routing, ids (any shape), while a ``with`` block uses them.

        Yields (id, expert) for each distinct id, once: in ascending order for several tokens, ids
        (T, k), else in any. Those ``elsewhere`` are in a quicker memory: neither asked for here
        nor counted as hits or misses, nor yielded.

        The arrays of an expert are read-only views of a slot. One token's, up to ``least_slots``
        of them, are valid until the hold ends, so that all may be used together; of several
        tokens', or more, each only until the next one, or the next batch, is asked for.

        The call opens the hold and starts its reads; leaving the block ends it, early if need be.
        Holds do not nest: opening another ends this one, which then raises RuntimeError.

        Raises:
            ReadError: a record could not be read whole and right. The next hold reads it again.
        """
        experts = self._routed(layer, ids, elsewhere)
        if self._hold is not None:  # nested, or an interrupt came before its block began
            self._reset()
        self._sound = False
        self._warmup.precede(layer, experts, self._reads.tickets)
        hold = self._hold = self._claim(layer, experts, ids)
        if hold.absent:
            self._passage.start(hold, self._note())
        self.usage.note(layer, ids)
        self._ahead.guess(self._note())
        self._sound = True
        return Arrivals(partial(self._take, hold), partial(self._end, hold))

    @property
    def sound(self) -> bool:
        """Whether no interrupt has left steps undone that belong together."""
        return self._sound and self.lending.sound

    def recover(self) -> None:
        """Between passes: start anew if an interrupt has left something undone."""
        if not self.sound or self._hold is not None:
            self._reset()

    @property
    def slots(self) -> int:
        """Experts that can be in memory at once, for the moment."""
        return self._cache.slots

    @property
    def free_slots(self) -> int:
        """Of these, how many have not been used yet."""
        return self._cache.free

    @property
    def withheld(self) -> int:
        """How many more there may be: memory has become short."""
        return self.extent.withheld

    @property
    def least_slots(self) -> int:
        """Slots that make every hold of one token last; it never shrinks below."""
        return self._lasting

    def warm(self, shares: Array) -> None:
        """Fill free slots with the experts that were chosen most, while the disk is idle.

        ``shares`` (layers, experts) of the tokens chose each one before. Returns at once.
        """
        self._sound = False
        self._cache.seed(shares)
        self._warmup.start(worth_reading(shares))
        self._sound = True

    def relieve(self) -> None:
        """Between passes: give memory back if it has become short, or take some again."""
        self._relief.tend(self)

    def shrink(self, count: int) -> int:
        """Give the memory of ``count`` experts back, and that of every free slot; how many slots.
        Of those in use or that make a hold last, none; nor of any that a device reads, since their
        memory would stay. Ends a warm-up. Not after a failed pass."""
        if not self._open or self._slots.kept:
            return 0
        sound, self._sound = self._sound, False
        self._backing.stop()
        self._warmup.stop()
        taken = self.extent.shrink(count)
        self._guesses.recheck()
        self._sound = sound
        return taken

    def grow(self, count: int) -> int:
        """Take up to ``count`` slots again that :meth:`shrink` gave back; returns how many."""
        return self.extent.grow(count)

    def resize(self, ceiling: int) -> None:
        """Between passes: there may be so many slots from now on, at least ``least_slots``. What
        :meth:`shrink` has taken stays away. Free slots go first, then the experts that are least
        likely to be used; reads that nobody waits for end."""
        if not self._open:
            return
        self.recover()
        self._sound = False
        self.extent.resize(ceiling, self._reads, self._warmup)
        self._guesses.recheck()
        self._sound = True

    def empty(self) -> None:
        """Forget every expert and all that was learned of them; the slots keep their memory."""
        if self._open:
            self._reset()
            self.usage = Usage(len(self._records), self._store.shape.experts.count)

    def close(self) -> None:
        """End all reads and give the memory back, repeatedly if need be.

        Where views of experts still live, the memory goes with the last of them.
        """
        self._open = False
        self._backing.stop()
        self._reader.close()
        self._slots.close()

    def _routed(self, layer: int, ids: Array, elsewhere: Collection[int]) -> list[int]:
        """The experts of a routing that are wanted here, in file order, of a sound streamer."""
        if not self._open:
            raise RuntimeError("the streamer is closed: open the store again")
        experts = self._records.routed(layer, ids)
        if not self.sound:
            self._reset()
        return [expert for expert in experts if expert not in elsewhere] if elsewhere else experts

    def _reset(self) -> None:
        """Start anew with empty slots, whatever an interrupt has left."""
        self._sound = False
        self._reader.drain()
        self.counters.bytes_read = self._reader.bytes_read
        self._forget()

    def _note(self) -> Callable[[int], None]:
        return partial(self._relief.note, self)  # made anew: kept, it would keep the slots alive

    def _claim(self, layer: int, experts: list[int], ids: Array) -> Hold:
        """Count a routing, and open its hold."""
        asked = self._asked.pop(layer, {})
        new = [expert for expert in experts if expert not in asked]
        if new:
            asked = asked | self._ask(layer, new, ids if len(new) == len(experts) else None)[0]
        if self._guesses.unasked:  # hinted, gone, and guessed again: wanted now all the same
            self._guesses.asked(layer, experts)
        hits = {expert for expert in experts if asked[expert]}
        self.counters.hits += len(hits)
        self.counters.misses += len(experts) - len(hits)
        lasts = not is_wide(ids) and len(experts) <= self._lasting
        hold = self._passage.claim(layer, experts, hits, lasts=lasts)
        if new:
            self._reads.let_go()
        return hold

    def _ask(
        self, layer: int, experts: list[int], ids: Array | None
    ) -> tuple[dict[int, bool], list[int]]:
        """Which experts were in memory, and not because of a guess, and all that have slots.

        A use of each; ``ids`` is their routing where they are all of it. Wrong guesses whose
        reads have not started are dropped.
        """
        guessed = self._guesses.asked(layer, experts)
        chosen = experts
        if ids is not None and is_wide(ids):
            slots = self._cache.sweep(layer, experts, ids)
            chosen = self._records.routed(layer, ids)  # wherever they are
        else:
            slots = self._cache.lookup_all(layer, experts)
        self._ahead.spoken(layer, token_count(ids), chosen)
        present = [expert for expert, slot in zip(experts, slots, strict=True) if slot >= 0]
        asked = dict.fromkeys(experts, False)
        asked.update((expert, expert not in guessed) for expert in present)
        if self._guesses.unasked:
            for key in self._guesses.unasked.intersection(self._reads.tickets):
                self._reads.cancel(key)
        return asked, present

    def _take(self, hold: Hold, most: int, *, block: bool = True) -> Batch:
        """Up to ``most`` experts of a hold that are there, at least one; none at its end."""
        if not hold.pending:
            return []
        if self._hold is not hold or not self._sound or not self._open:
            raise RuntimeError("this hold has ended: by another, an interrupt, close or its end")
        if hold.failed is not None:
            raise hold.failed
        self._sound = False
        try:
            batch = self._passage.take(hold, most, self._note(), block=block)
        except ReadError:
            self._sound = True  # the read that failed is put away
            raise
        if not hold.absent and hold.order is not None:
            self._ahead.pursue(self._note())
        self._sound = True
        return batch

    def _end(self, hold: Hold) -> bool:
        """Leave a hold; False where another hold or an interrupt has ended it already."""
        if self._open and self._hold is not hold:
            return False
        if self._open and self._sound:
            self._sound = False
            self._passage.end(hold)
            narrow = hold.order is None and len(hold.wanted) <= self._top_k
            self._guesses.ended(hold.layer, hold.waited_ms if narrow else None)
            self._hold = None
            self._sound = True
        return True
