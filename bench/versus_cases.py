"""What is compared: the work of a comparison, the ways llama.cpp is run, and known cases.

Owns the presets and their defaults. Cases are named by shape and memory: a is the 35B shape
whole, b eight layers of the 397B shape, c all 60 of its layers on eight distinct files, which
llama.cpp cannot load: flashmoe runs alone there. llama.cpp is run with a read-ahead of 128 KiB,
which suits it best where experts are read from disk, and with the machine's own, which is what
a user gets who changes nothing. Cases named by a number of tokens at the end are of prompts; for
these a read-ahead of 1 MiB is tried too, since most of a layer is read, and the quickest is kept.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from command import whole
from synthetic_shapes import SIZES

from flashmoe.errors import InputError
from flashmoe.stream.units import parse_bytes

NATIVE = "native"
TUNED_KIB = 128
LARGER_KIB = 1024
SHORT_REPLY = 9
"""Tokens where llama.cpp reads far more than it needs: a token takes it seconds."""


@dataclass(frozen=True)
class Peer:
    """One way to run llama.cpp: in the first ``turns`` turns (None: in all of them).

    ``read_ahead_kib`` None leaves the machine's own. ``repack`` lets it keep weights a second
    time in layouts of its own. ``most_tokens`` cuts its replies short. ``batch_tokens`` of a prompt
    pass together; 512 is its own default. ``build`` names one of ``llamacpp_environment``.
    """

    name: str
    read_ahead_kib: int | None
    repack: bool = False
    turns: int | None = None
    most_tokens: int | None = None
    batch_tokens: int = 512
    build: str = NATIVE

    def of(self, build: str) -> Peer:
        """The same way of another build."""
        name = self.name if build == NATIVE else f"{build}, {self.name}"
        return replace(self, name=name, build=build)


TUNED = Peer("tuned", TUNED_KIB)
OWN = Peer("own read-ahead", None, turns=1, most_tokens=SHORT_REPLY)
LARGER = Peer("read-ahead 1 MiB", LARGER_KIB)
MAPPED = Peer("mapped", None)
REPACKED = Peer("repacked", None, repack=True)
WAYS = tuple(peer.name for peer in (TUNED, OWN, LARGER, MAPPED, REPACKED))


@dataclass(frozen=True)
class Case:
    """The work: ``experts`` None is the model's own number; ``ram_bytes`` None is no limit.

    ``prompts``: it is the speed of the prompt that is compared, and decoding by the way. ``ways``
    of llama.cpp by name (None: all that the work has), each with ``batch_tokens``.
    """

    shape: str
    layers: int | None
    ram_bytes: int | None
    experts: int | None
    prompt_tokens: int
    gen_tokens: int
    repeat: int
    skew: float = 0.0
    distinct: int | None = None
    prompts: bool = False
    ways: tuple[str, ...] | None = None
    batch_tokens: int = 512

    @property
    def cold(self) -> bool:
        """Within a limit each repetition begins with nothing in memory; else warmed up."""
        return self.ram_bytes is not None

    @property
    def peers(self) -> tuple[Peer, ...]:
        """In the order in which they take their turns; none where no GGUF can be written."""
        if self.distinct is not None:
            return ()
        if self.ram_bytes is None:
            found = [REPACKED, MAPPED]
        else:
            found = [TUNED, LARGER, replace(OWN, turns=None)] if self.prompts else [TUNED, OWN]
        return tuple(
            replace(peer, batch_tokens=self.batch_tokens)
            for peer in found
            if self.ways is None or peer.name in self.ways
        )

    def model_name(self) -> str:
        """Of the files with the weights."""
        name = f"{self.shape}-{self.layers or SIZES[self.shape].layers}"
        name += f"-skew{self.skew:g}" if self.skew else ""
        return name if self.distinct is None else f"{name}-distinct{self.distinct}"


A = Case("qwen3.5-35b-a3b", None, None, None, 128, 64, 3)
B = Case("qwen3.5-397b-a17b", 8, 12 << 30, None, 128, 32, 3)
C = replace(B, layers=None, ram_bytes=16 << 30, distinct=8)
P = replace(A, prompt_tokens=512, gen_tokens=SHORT_REPLY, prompts=True)
CASES = {
    "a-ram": A,
    "a-8g": replace(A, ram_bytes=8 << 30, gen_tokens=32),
    "b-12g": B,
    "b-12g-top4": replace(B, experts=4),
    "c-16g": C,
    "c-16g-top4": replace(C, experts=4),
    "a-ram-512": P,
    "a-ram-4096": replace(P, prompt_tokens=4096),
    "a-8g-512": replace(P, ram_bytes=8 << 30),
    "a-8g-4096": replace(P, ram_bytes=8 << 30, prompt_tokens=4096),
    "b-12g-512": replace(P, shape=B.shape, layers=B.layers, ram_bytes=B.ram_bytes),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the work; whatever is given wins over the case."""
    parser.add_argument("shape", nargs="?", choices=SIZES, metavar="SHAPE", help=", ".join(SIZES))
    parser.add_argument("--case", choices=CASES, help="preset; other flags change it")
    parser.add_argument("--layers", type=whole(1, 4096), help="instead of the model's own number")
    parser.add_argument("--ram", help="limit on each side's memory, page cache too: 8GiB; none")
    parser.add_argument("--experts-per-token", type=whole(), dest="experts")
    parser.add_argument("--prompt-tokens", type=whole())
    parser.add_argument("--gen-tokens", type=whole(2))
    parser.add_argument("--repeat", type=whole(), help="turns")
    parser.add_argument("--skew", type=float, help="as bench/synthetic.py takes it")
    parser.add_argument(
        "--prompts", action="store_true", default=None, help="compare prompts, not decoding"
    )
    parser.add_argument("--distinct", type=whole(), help="the same; llama.cpp is left out")
    parser.add_argument(
        "--way",
        action="append",
        choices=WAYS,
        dest="ways",
        help="of running llama.cpp; may be given several times (default: all that the work has)",
    )
    parser.add_argument(
        "--batch-tokens",
        type=whole(),
        help="of a prompt that pass llama.cpp together, in every way",
    )


def case_of(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Case:
    """The work that was asked for."""
    if given.case is None and given.shape is None:
        parser.error("give a SHAPE or a --case")
    case = CASES[given.case] if given.case else replace(A, shape=given.shape)
    if given.case and given.shape not in (None, case.shape):
        parser.error(f"--case {given.case} is of shape {case.shape}: leave out {given.shape}")
    names = ("layers", "experts", "prompt_tokens", "gen_tokens", "repeat", "skew", "distinct",
             "prompts", "batch_tokens")  # fmt: skip
    changed = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if given.ram is not None:
        try:
            changed["ram_bytes"] = None if given.ram == "none" else parse_bytes(given.ram)
        except InputError as error:
            parser.error(f"--ram: {error}")
    if given.ways is not None:
        changed["ways"] = tuple(given.ways)
    case = replace(case, **changed)
    if given.ways and not case.peers:
        parser.error(
            f"--way: this work has {', '.join(p.name for p in replace(case, ways=None).peers)}"
        )
    return case
