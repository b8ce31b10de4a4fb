"""One run of either side, and whether both compute the same function.

Owns the command lines, the seeds and what is read from each side's output. Both get the same
random prompt; ours answers at temperature 1, which on random weights is as near uniform as the
random ids that llama.cpp is fed. Invariant: a run begins with none of its files in the page
cache, a prompt or reply within a limit with no expert in memory, and its figures are those the
program printed itself.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from confinement import Confinement
from readahead import drop_pages, read_ahead
from synthetic_shapes import SIZES
from versus_cases import Case, Peer

from flashmoe.apps.bench import SEED
from flashmoe.quant import dequantize
from flashmoe.store.checkpoint import open_checkpoint
from flashmoe.store.gguf_header import read_header
from flashmoe.store.layout import MANIFEST
from flashmoe.store.published_files import OpenFiles
from flashmoe.store.reader import Store

HERE = Path(__file__).parent
DRIVER = HERE / "llamacpp_driver.py"
FLASHMOE = (sys.executable, "-c", "import sys; from flashmoe.apps import main; sys.exit(main())")
CHECK_TOKENS = 12
CHECK_WORDS = 2000  # every vocabulary here has so many
LEAST_CORRELATION = 0.99
"""Of both sides' logits, a layer: to the power of the layers. llama.cpp rounds activations to 8
bits, an error that grows with each layer and each other expert that is chosen for it (random
weights: 0.999 after 4 layers, 0.83 after 40). Heads in a wrong order leave 0.6 after 4 layers."""


@dataclass(frozen=True)
class Sides:
    """Where both sides are, and the work; ``gguf`` None: ours alone.

    ``pythons`` are those of llama.cpp's environments, by the names of their builds.
    """

    case: Case
    store: Path
    gguf: Path | None
    pythons: Mapping[str, Path]

    @property
    def threads(self) -> int:
        """Of both."""
        return len(os.sched_getaffinity(0))

    def command(self, case: Case | None = None) -> list[str]:
        """Ours, as a user would type it behind ``flashmoe``; of another ``case`` if it is given."""
        case = case or self.case
        words = ["bench", str(self.store), "--json", "--repeat", "1"]
        words += ["--prompt-tokens", str(case.prompt_tokens), "--gen-tokens", str(case.gen_tokens)]
        words += ["--threads", str(self.threads)]
        if case.ram_bytes is not None:
            words += ["--ram", str(case.ram_bytes)]
        if case.experts is not None:
            words += ["--experts-per-token", str(case.experts)]
        return [*words, "--cold"] if case.cold else words

    def drop(self) -> None:
        """Both begin cold."""
        files = {path for path in self.store.iterdir() if path.name != MANIFEST}
        drop_pages(files if self.gguf is None else {*files, self.gguf})


def run_ours(sides: Sides) -> dict[str, Any]:
    """The figures of ``flashmoe bench``."""
    sides.drop()
    return run_json([*FLASHMOE, *sides.command()], sides.case.ram_bytes, "flashmoe")


def run_resident(sides: Sides) -> dict[str, Any]:
    """The same prompt as in :func:`run_ours`, with all of the machine's memory and warmed up."""
    sides.drop()
    case = replace(sides.case, ram_bytes=None, gen_tokens=2)
    return run_json([*FLASHMOE, *sides.command(case)], None, "flashmoe")


def run_peer(sides: Sides, peer: Peer) -> dict[str, Any]:
    """The figures of llama.cpp, and the read-ahead it had."""
    case = sides.case
    tokens = min(case.gen_tokens, peer.most_tokens or case.gen_tokens)
    assert sides.gguf is not None
    request = {
        "prompt_tokens": case.prompt_tokens,
        "gen_tokens": tokens,
        "seed": SEED + 1,  # of our first repetition
        "cold": expert_extents(sides.gguf) if case.cold else None,
        **shared_request(sides, peer),
    }
    sides.drop()
    with read_ahead(sides.gguf, peer.read_ahead_kib) as kib:
        command = driver(sides, peer.build, request)
        found = run_json(command, case.ram_bytes, f"llama.cpp, {peer.name}")
    more = {"build": peer.build, "batch_tokens": peer.batch_tokens}
    return {**found, **more, "read_ahead_kib": kib, "gen_tokens": tokens}


def expert_extents(gguf: Path) -> list[tuple[int, int]]:
    """Start and length of the experts' tensors in a GGUF file, neighbours as one."""
    with closing(OpenFiles()) as files:
        tensors = read_header(files, gguf).tensors
    found: list[tuple[int, int]] = []
    for tensor in sorted(
        (tensor for name, tensor in tensors.items() if "_exps." in name),
        key=lambda tensor: tensor.offset,
    ):
        if found and sum(found[-1]) == tensor.offset:
            found[-1] = (found[-1][0], found[-1][1] + tensor.nbytes)
        else:
            found.append((tensor.offset, tensor.nbytes))
    return found


def driver(sides: Sides, build: str, request: dict[str, Any]) -> list[str]:
    """The command line of llama.cpp's side."""
    return [str(sides.pythons[build]), str(DRIVER), json.dumps(request)]


def agreement(sides: Sides, peer: Peer) -> dict[str, float]:
    """How alike both sides' logits of a few ids are; ends where they are not."""
    case = sides.case
    ids = np.random.default_rng(SEED).integers(0, CHECK_WORDS, CHECK_TOKENS).tolist()
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder) / "theirs.npy", Path(folder) / "ours.npy"
        request = {"ids": ids, "logits": str(theirs), **shared_request(sides, peer)}
        run_json(driver(sides, peer.build, request), case.ram_bytes, "llama.cpp")
        asked = {"store": str(sides.store), "ids": ids, "logits": str(ours)}
        asked |= {"ram_bytes": case.ram_bytes, "experts": case.experts}
        command = [sys.executable, str(HERE / "versus_logits.py"), json.dumps(asked)]
        run_json(command, case.ram_bytes, "flashmoe")
        layers = case.layers or SIZES[case.shape].layers
        return likeness(np.load(ours), np.load(theirs), LEAST_CORRELATION**layers)


def likeness(ours: Any, theirs: Any, least: float) -> dict[str, float]:
    """Of logits (tokens, vocabulary); ends where they are of two models.

    The median correlation of a position's logits, the share of positions with the same best id,
    and the smallest root mean square difference, relative to the logits' standard deviation:
    that of a position for which the same experts were chosen everywhere.
    """
    found = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(ours, theirs, strict=True)]
    median = float(np.median(found))
    if not median >= least:
        sys.exit(
            f"error: the two sides compute different functions: their logits correlate by "
            f"{median:.3f} (at least {least:.3f}). Remove store and GGUF, so that both "
            "are made anew of the same weights"
        )
    best = float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
    errors = np.sqrt(((ours - theirs) ** 2).mean(axis=1)) / ours.std(axis=1)
    return {"correlation": median, "same_best": best, "least_error": float(errors.min())}


def check_weights(store_path: Path, gguf: Path) -> int:
    """Compare one expert a layer, every bit of its weights; the number of matrices compared."""
    store, compared = Store.open(store_path), 0
    with open_checkpoint(gguf) as published:
        for layer in range(store.shape.layers):
            expert = layer * 37 % store.shape.experts.count
            at = store.record(layer, expert)
            raw = np.fromfile(at.path, np.uint8, at.nbytes, offset=at.offset)
            record = store.layout(layer).expert(raw)
            for name in ("gate", "up", "down"):
                ours = getattr(record, name)
                rows = (expert * ours.shape[0], (expert + 1) * ours.shape[0])
                theirs = published.rows(f"blk.{layer}.ffn_{name}_exps.weight", *rows)
                if not np.array_equal(dequantize(ours), dequantize(theirs)):
                    sys.exit(
                        f"error: {name} of expert {expert} in layer {layer} differs between "
                        f"{store_path} and {gguf}: remove both, so that they are made anew"
                    )
                compared += 1
    return compared


def shared_request(sides: Sides, peer: Peer) -> dict[str, Any]:
    return {
        "gguf": str(sides.gguf),
        "threads": sides.threads,
        "experts": sides.case.experts,
        "repack": peer.repack,
        "batch_tokens": peer.batch_tokens,
    }


def run_json(command: list[str], ram_bytes: int | None, name: str) -> dict[str, Any]:
    """The JSON object on the last line of what a command prints within the limit."""
    with Confinement(ram_bytes) as confined:
        code, output = confined.run(command)
    if code:
        why = " (the memory limit, most likely)" if code == -9 else ""
        sys.exit(f"error: {name} ended with code {code}{why}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found
