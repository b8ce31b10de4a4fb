"""The figures of a bench: computed from the steps and the ceilings, as a table or as JSON.

Owns their names, formulas and wording; the numbers come from :class:`flashmoe.step.Totals` and
:class:`flashmoe.apps.ceilings.Ceilings`.

The limit on decoding is ``1 / max(bytes missed / disk rate, bytes touched / memory rate)``: the
time of a token if all else were free, and the shorter of reads and arithmetic hid behind the
longer. Missed bytes are those of the experts that were not in memory when they were asked for,
whatever else was read in advance; where the page cache keeps the experts (``--io os``) nobody
tells which these are, and what came from the device counts in their place. Touched are the
resident tensors that a token is multiplied with, and its routed experts. Where a GPU computes,
the limit is ``bench_vram``'s. That on prompts is ``prompt_figures``'.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flashmoe.apps import bench_vram, prompt_figures
from flashmoe.apps.ceilings import Ceilings, distinct_layers
from flashmoe.apps.drives import drive_lines, drives_of
from flashmoe.apps.prompt_figures import PromptCost
from flashmoe.engine import Engine
from flashmoe.quant import Affine, Format
from flashmoe.step import Step, Totals
from flashmoe.store.reader import Store
from flashmoe.stream import memory
from flashmoe.stream.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

KEYS = {
    "pp_tok_s": "prompt tokens a second, the first token's sampling included",
    "tg_tok_s": "tokens a second after the first",
    "ttft_ms": "from the start of the prompt to the first token",
    **prompt_figures.KEYS,
    "bytes_per_token": "read for a token after the first, what was read in vain included",
    "device_bytes_per_token": "of these and of what was read ahead, not from the page cache; null "
    "where the system does not tell",
    "missed_bytes_per_token": "of the experts that were not in memory, at the mean record size; "
    "null with --io os: the page cache does not tell",
    "hit_rate": "experts found in memory, of all those asked for after the first token; null with "
    "--io os",
    "ms_read_wait_per_token": "spent waiting for experts",
    "python_share": "of a token after the first: neither native work nor waiting for reads; null "
    "where a GPU computes: the wait for it is not told apart",
    "disk_bytes_s": "ceiling: records of this store at the best depth, in random order",
    "disk_depth": "that depth",
    "io": "how experts were read and kept",
    "direct": "whether those reads bypassed the page cache",
    "memory_bytes_s": "ceiling: a large array read by all threads",
    "touched_bytes_per_token": "weights that a token is multiplied with",
    "limit_tok_s": "tokens a second that the ceilings allow",
    "share_of_limit": "tg_tok_s of that",
    "peak_rss_bytes": "largest resident memory of the process",
    "ram_bytes": "the memory it was given",
    "slots": "experts that fit in memory at once",
    "experts_per_token": "chosen in each layer",
    "bits": "of an expert's weight, the mean where they differ",
    "context": "tokens of context planned for",
    "prompt_tokens": "of each repetition",
    "gen_tokens": "of each repetition",
    "repeat": "repetitions; speeds, times, bytes and rates are medians of them",
    "cold": "whether each began with an empty cache and nothing in the page cache",
    "pp_tok_s_range": "slowest and quickest repetition",
    "tg_tok_s_range": "the same",
}
"""The JSON keys in order, and what they mean. Where a GPU computes those of ``bench_vram`` follow;
``distinct`` joins them where layer files are links to one another: how many are not; with
``--store-dir`` also ``drives``: see ``apps.drives``."""


@dataclass(frozen=True)
class Reply:
    """One repetition: its steps, what was read from devices after the first of them, and what
    its prompt took."""

    steps: list[Step]
    device_bytes: int | None
    prompt: PromptCost = field(default_factory=PromptCost)


def figures(
    engine: Engine, limits: Ceilings, replies: list[Reply], *, cold: bool
) -> dict[str, Any]:
    """Every figure, by :data:`KEYS`."""
    whole = [Totals.of(reply.steps) for reply in replies]
    decoded = [Totals.of(reply.steps[1:]) for reply in replies]
    prompt = [one.prompt_tokens_per_second for one in whole]
    decode = [one.tokens_per_second for one in whole]
    own = engine.runtime.io != "os"
    missed = statistics.median(one.misses / one.tokens for one in decoded) * record_bytes(engine)
    device, touched = device_bytes(replies), touched_bytes(engine)
    from_disk = missed if own else (device or 0)
    disk_s = from_disk / limits.disk_bytes_s
    wanted = record_bytes(engine), touched, disk_s
    of_gpu = bench_vram.figures(engine, limits, decoded, *wanted)
    limit = 1 / max(disk_s, touched / limits.memory_bytes_s)
    if of_gpu:
        limit = 1e3 / max(of_gpu["limit_ms"].values())
    speed, prompt_speed = statistics.median(decode), statistics.median(prompt)
    prompts = [(reply.steps[0], reply.prompt) for reply in replies]
    found = {
        **vars(limits),
        **prompt_figures.figures(engine, limits, prompts, prompt_speed),
        "pp_tok_s": prompt_speed,
        "pp_tok_s_range": [min(prompt), max(prompt)],
        "tg_tok_s": speed,
        "tg_tok_s_range": [min(decode), max(decode)],
        "ttft_ms": statistics.median(one.ms_first for one in whole),
        "bytes_per_token": statistics.median(one.bytes_per_token for one in whole),
        "device_bytes_per_token": device,
        "missed_bytes_per_token": missed if own else None,
        "hit_rate": statistics.median(one.hit_rate for one in decoded) if own else None,
        "ms_read_wait_per_token": statistics.median(o.ms_read_wait / o.tokens for o in decoded),
        "io": engine.runtime.io,
        "python_share": None if of_gpu else statistics.median(one.python_share for one in whole),
        "touched_bytes_per_token": touched,
        "limit_tok_s": limit,
        "share_of_limit": speed / limit,
        "peak_rss_bytes": memory.peak_resident_bytes(),
        "ram_bytes": engine.plan.budget_bytes,
        "slots": engine.plan.slots,
        "experts_per_token": engine.shape.experts.top_k,
        "bits": mean_bits(engine.store),
        "context": engine.plan.context_tokens,
        "prompt_tokens": whole[0].prompt_tokens,
        "gen_tokens": whole[0].tokens,
        "repeat": len(replies),
        "cold": cold,
    }
    ordered, distinct = {key: found[key] for key in KEYS}, len(distinct_layers(engine.store))
    if of_gpu:
        ordered |= {key: of_gpu[key] for key in bench_vram.KEYS}
    if distinct != engine.shape.layers:
        ordered["distinct"] = distinct
    if engine.runtime.store_dirs:
        ordered["drives"] = drives_of(engine)
    return ordered


def device_bytes(replies: list[Reply]) -> float | None:
    """Bytes a token after the first, the median; None where any is unknown."""
    found = [
        reply.device_bytes / (len(reply.steps) - 1)
        for reply in replies
        if reply.device_bytes is not None
    ]
    return statistics.median(found) if len(found) == len(replies) else None


def record_bytes(engine: Engine) -> float:
    """Size of a record, the mean where layers differ."""
    return statistics.mean(entry.layout.record_bytes for entry in engine.store.manifest.layers)


def touched_bytes(engine: Engine) -> int:
    """Weights that one token is multiplied with: of a separate embedding it takes one row."""
    manifest, shape = engine.store.manifest, engine.shape
    resident = sum(
        part.nbytes
        for tensor in manifest.trunk
        if shape.tied_head or tensor.name != "embed_tokens.weight"
        for _, part in tensor.named_parts()
    )
    return resident + shape.experts.top_k * sum(entry.layout.nbytes for entry in manifest.layers)


def mean_bits(store: Store) -> float:
    """Bits of an expert's weight, scales not counted; a whole number is an int."""
    total = weights = 0
    for entry in store.manifest.layers:
        for form, (rows, columns), _ in entry.layout.matrices:
            total += rows * columns * bits_of(form)
            weights += rows * columns
    return total // weights if total % weights == 0 else total / weights


def bits_of(form: Format) -> int:
    """Bits of a code, or of a number where weights are not quantised."""
    if isinstance(form, Affine):
        return form.bits
    return 32 if form.dtype == "F32" else 16


def table(found: dict[str, Any]) -> Table:
    """The figures for a person."""
    from rich.table import Table

    shown = Table(box=None, show_header=False)
    shown.add_column()
    shown.add_column(justify="right")
    shown.add_column()
    kind = "direct" if found["direct"] else "through the page cache"
    tokens = f"{found['prompt_tokens']} tokens"
    rows = (
        ("disk", _rate(found["disk_bytes_s"]), f"depth {found['disk_depth']}, {kind}"),
        ("memory", _rate(found["memory_bytes_s"]), "all threads"),
        *bench_vram.ceilings(found),
        ("prompt", f"{found['pp_tok_s']:.2f} tok/s", f"{_range(found, 'pp_tok_s')}, {tokens}"),
        ("first token", f"{found['ttft_ms'] / 1e3:.2f} s", ""),
        *prompt_figures.rows(found),
        ("decode", f"{found['tg_tok_s']:.2f} tok/s", _range(found, "tg_tok_s")),
        ("read a token", f"{found['bytes_per_token'] / 1e9:.3f} GB", _missed(found)),
        ("touched a token", f"{found['touched_bytes_per_token'] / 1e9:.3f} GB", ""),
        ("from the device", *_device(found)),
        ("hits", *_hits(found)),
        ("read wait", f"{found['ms_read_wait_per_token']:.1f} ms", "a token"),
        *bench_vram.costs(found),
        *_python(found),
        ("limit", f"{found['limit_tok_s']:.2f} tok/s", bench_vram.allowance(found)),
        ("of the limit", f"{found['share_of_limit']:.1%}", ""),
        ("peak memory", format_bytes(found["peak_rss_bytes"]), _given(found)),
    )
    for row in rows:
        shown.add_row(*row)
    return shown


def remarks(found: dict[str, Any], own_experts: int) -> list[str]:
    """What a reader of the figures must know besides."""
    start = "cold" if found["cold"] else "warm"
    experts = found["experts_per_token"]
    lines = [
        f"{experts} experts a token, {found['bits']:g} bits, {found['repeat']} repetitions, "
        f"{start}, context {found['context']}"
    ]
    if experts != own_experts:
        lines.append(f"lossy: the model's own is {own_experts} experts a token")
    if "distinct" in found:
        lines.append(f"only {found['distinct']} layer files are distinct; the rest are links")
    return lines + drive_lines(found.get("drives", []))


def _rate(bytes_s: float) -> str:
    return f"{bytes_s / 1e9:.2f} GB/s"


def _range(found: dict[str, Any], key: str) -> str:
    low, high = found[f"{key}_range"]
    return f"{low:.2f} to {high:.2f}"


def _missed(found: dict[str, Any]) -> str:
    missed = found["missed_bytes_per_token"]
    return "through the page cache" if missed is None else f"{missed / 1e9:.3f} GB were missing"


def _device(found: dict[str, Any]) -> tuple[str, str]:
    read = found["device_bytes_per_token"]
    return ("unknown", "") if read is None else (f"{read / 1e9:.3f} GB", "a token")


def _hits(found: dict[str, Any]) -> tuple[str, str]:
    if found["hit_rate"] is None:
        return "unknown", "the page cache keeps the experts"
    return f"{found['hit_rate']:.1%}", f"{found['slots']} slots"


def _python(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    share = found["python_share"]
    remark = "of a token: neither native work nor waiting"
    return [] if share is None else [("Python", f"{share:.1%}", remark)]


def _given(found: dict[str, Any]) -> str:
    return f"of {format_bytes(found['ram_bytes'])}"
