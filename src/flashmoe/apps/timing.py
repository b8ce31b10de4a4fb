"""Where the time of a reply went: a row a layer, a column a phase.

Owns the division of the clock into prompt and decode, and the table; the times are
:class:`flashmoe.model.observer.PhaseClock`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flashmoe.model.observer import PHASES, Phase, PhaseClock
from flashmoe.step import Step, Totals

if TYPE_CHECKING:
    from rich.table import Table


class ReplyClock(PhaseClock):
    """A phase clock that keeps the prompt's passes apart, in ``prompt_ms``."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt_ms: defaultdict[tuple[int, Phase], float] = defaultdict(float)

    def end_prompt(self) -> None:
        """The first token is there: what follows is decoding."""
        self.prompt_ms.update(self.ms)
        self.ms.clear()
        self.passes = 0


def table(
    clock: ReplyClock, mixers: Sequence[str], steps: Sequence[Step], *, on_gpu: bool = False
) -> Table:
    """Milliseconds a decoded token: a row a layer, then their sum; the last row is the prompt.

    The embedding counts to the first layer and the head to the last; *experts* includes the
    wait for reads. With a GPU the host's wait for it is not told apart from Python.
    """
    from rich.table import Table

    found = Table(
        title="ms a token",
        caption=_caption(clock, steps, on_gpu=on_gpu),
        caption_justify="left",
        box=None,
    )
    found.add_column("layer", justify="right")
    found.add_column("mixer is")
    for phase in (*PHASES, "total"):
        found.add_column(phase, justify="right")
    for layer, mixer in enumerate(mixers):
        times = [clock.ms[layer, phase] / max(clock.passes, 1) for phase in PHASES]
        found.add_row(str(layer), mixer, *_cells(times))
    found.add_section()
    sums = [sum(clock.ms[layer, phase] for layer in range(len(mixers))) for phase in PHASES]
    found.add_row("all", "", *_cells([time / max(clock.passes, 1) for time in sums]))
    prompt = [sum(clock.prompt_ms[layer, name] for layer in range(len(mixers))) for name in PHASES]
    found.add_row("prompt", "", *_cells(prompt))
    return found


def _cells(times: Sequence[float]) -> list[str]:
    return [f"{time:.2f}" for time in (*times, sum(times))]


def _caption(clock: ReplyClock, steps: Sequence[Step], *, on_gpu: bool) -> str:
    decode = Totals.of(steps[1:])
    tokens = max(decode.tokens, 1)
    spent = sum(step.ms_total for step in steps[1:])
    decode_share = Totals.of(steps).python_share
    elsewhere = max(spent - sum(clock.ms.values()), 0.0)
    python = f"{decode_share:.1%} of a token is Python, neither native work nor waiting; "
    return (
        f"{decode.ms_read_wait / tokens:.2f} ms a token of experts is waiting for reads; sampling "
        f"and text take {elsewhere / tokens:.2f} ms more; {'' if on_gpu else python}"
        "the row of the prompt is for all of it"
    )
