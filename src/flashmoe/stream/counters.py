"""What streaming has cost: the figures of which every face tells.

Owns the record and its differences. Who counts, and when, is the ``streamer``'s.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass
class Counters:
    """What streaming has cost since the start.

    Each hold counts each of its distinct experts once: a *hit* was in memory, or on its way, when
    this routing first asked, be it by its hint or its hold; a *miss* had to be read because of
    it. A hold takes the last hint for its layer for its own. So hits and misses do not depend on
    whether that was hinted, and hints that no hold follows count nothing. An expert that is there
    because it was guessed is a miss when first asked for: guesses earn no hits, and cost some
    where a wrong one has taken the slot of another. One that a warm-up has read, or is reading,
    is a hit; one that it would only have read later is a miss. So is one of a chunk's experts that
    was in memory, but had to leave before its turn because others of them filled every slot.

    ``bytes_read`` were delivered by the system, those of a warm-up, of failed reads and of wrong
    guesses included; ``wait_ms`` is the time in which hold had nothing to yield. ``guessed`` reads
    were started before their routing was known, ``guessed_right`` of them for experts that were
    asked for before they had to leave.

    With a tier of VRAM above (``tiers``) all that counts what the tier has asked for, in RAM and
    on disk. Its own holds count each distinct expert once too: a *VRAM hit* was in VRAM when this
    routing first asked; a *VRAM miss* had to be copied there, ``copied_bytes``, failed copies and
    those for nothing, ahead of a choice, included. One that is there because it was copied ahead is
    a miss when first asked for. ``copy_wait_ms`` is the time in which the host waited for copies.
    """

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    wait_ms: float = 0.0
    guessed: int = 0
    guessed_right: int = 0
    vram_hits: int = 0
    vram_misses: int = 0
    copied_bytes: int = 0
    copy_wait_ms: float = 0.0

    def snapshot(self) -> Counters:
        """A copy that stays as it is."""
        return replace(self)

    def since(self, earlier: Counters) -> Counters:
        """What was added after an earlier snapshot."""
        names = [field.name for field in fields(self)]
        return Counters(*(getattr(self, name) - getattr(earlier, name) for name in names))
