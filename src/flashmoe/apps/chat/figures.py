"""``/stats``: what a conversation has cost in this process, and what memory it has.

Owns the rows and their wording; the numbers are the replies' totals and the engine's.
"""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from flashmoe.apps.chat.talk import Talk
from flashmoe.apps.footer import vram_share
from flashmoe.apps.plurals import counted
from flashmoe.engine import Engine
from flashmoe.stream import memory
from flashmoe.stream.units import format_bytes


def stats(engine: Engine, talk: Talk) -> Table:
    """The figures as a table; those of replies only where there are some."""
    rows = {"turns": _turns(talk)}
    rows["context"] = f"{len(talk.session.ids)} of {engine.plan.context_tokens} tokens"
    if talk.spent.replies:
        rows |= _spent(talk)
    vram = vram_share(engine)
    if vram is not None and talk.spent.replies:
        rows["experts in VRAM"] = _above(talk)
    peak, budget = memory.peak_resident_bytes(), engine.plan.budget_bytes
    slots = counted(engine.streamer.slots, "slot")
    rows["memory"] = f"peak {format_bytes(peak)} of {format_bytes(budget)}, {slots}"
    if vram is not None:
        slots = counted(vram.vram_slots, "slot")
        rows["VRAM"] = f"{format_bytes(vram.vram_bytes)} of {vram.gpu}, {slots}"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(Text(name, style="dim"), Text(value))
    return table


def _turns(talk: Talk) -> str:
    turns, replies = talk.transcript.turns, len(talk.spent.replies)
    if replies:
        return f"{turns}, {counted(replies, 'reply')} in this process"
    if turns:
        return f"{turns}, none of them in this process: figures come with the next reply"
    return "none yet: figures come with the first reply"


def _spent(talk: Talk) -> dict[str, str]:
    total = talk.spent.total
    decode_s, first_s = total("ms_decode") / 1e3, total("ms_first") / 1e3
    hits, misses = total("hits"), total("misses")
    tokens = total("tokens")
    read = total("prompt_tokens") - total("cached_tokens")
    return {
        "prompts": f"{counted(read, 'token')} read, {_rate(read, first_s)}, "
        f"{total('cached_tokens'):.0f} from the prefix cache",
        "replies": f"{counted(tokens, 'token')}, "
        f"{_rate(tokens - len(talk.spent.replies), decode_s)}",
        "experts": f"{hits / (hits + misses) if hits + misses else 0:.1%} hits, "
        f"{total('bytes_read') / 1e9:.3g} GB read, "
        f"{total('ms_read_wait') / 1e3:.1f} s waited for them",
    }


def _above(talk: Talk) -> str:
    """What was found in VRAM; the experts' own row is of what was not."""
    total = talk.spent.total
    hits, misses = total("vram_hits"), total("vram_misses")
    return (
        f"{hits / (hits + misses) if hits + misses else 0:.1%} hits, "
        f"{total('copied_bytes') / 1e9:.3g} GB copied, "
        f"{total('ms_copy_wait') / 1e3:.1f} s waited for copies"
    )


def _rate(tokens: float, seconds: float) -> str:
    return f"{tokens / seconds if seconds else 0:.1f} tok/s"
