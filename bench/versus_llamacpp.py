"""flashmoe and llama.cpp on the same weights, in the same memory, in turns in one run.

    .venv/bin/python bench/versus_llamacpp.py --case a-8g [--save]
    .venv/bin/python bench/versus_llamacpp.py qwen3.5-35b-a3b --layers 4 --ram 1200MiB
    .venv/bin/python bench/versus_llamacpp.py --case a-ram-512 --env native=DIR --env ik=DIR

Writes a store of random weights and the same weights as GGUF below --work, or uses those it
finds there (--store and --gguf name others). llama.cpp lives in an environment of its own,
--env, which is built where it is missing and takes a quarter of an hour; given several times,
several builds take part. Run it as root on an
otherwise idle machine: it makes a memory cgroup and sets the disk's read-ahead, and puts both
back. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import statistics
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import llamacpp_environment
import results
import versus_cases
import versus_prompts
from backing import back_memory
from command import run
from confinement import Confinement
from llamacpp_environment import BUILDS
from synthetic_gguf import write_gguf
from versus_cases import MAPPED, NATIVE, Case, Peer
from versus_runs import HERE, Sides, agreement, check_weights, run_ours, run_peer, run_resident

from flashmoe import __version__
from flashmoe.store.layout import MANIFEST
from flashmoe.stream.units import format_bytes

BUILD = HERE.parent / "build"
MEDIANS = (
    "pp_tok_s", "tg_tok_s", "bytes_per_token", "peak_rss_bytes", "major_faults_per_token",
    "ms_system_per_token", "prompt_bytes_per_token", "ttft_ms", "load_s", "hit_rate",
    "limit_tok_s", "share_of_limit", "disk_bytes_s", "memory_bytes_s", "missed_bytes_per_token",
    "python_share", "ms_read_wait_per_token", "prompt_bytes", "prompt_device_bytes",
    "prompt_touched_bytes", "prompt_needed_bytes", "prompt_ms_read_wait", "prompt_ms_arithmetic",
)  # fmt: skip
OF_A_PEER = ("read_ahead_kib", "library", "features", "build", "batch_tokens", "gen_tokens")


def arguments() -> tuple[argparse.Namespace, Case]:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    versus_cases.add_arguments(parser)
    parser.add_argument(
        "--env",
        action="append",
        metavar="[BUILD=]DIR",
        help=f"llama.cpp's; BUILD is one of {', '.join(BUILDS)}; may be given for each",
    )
    parser.add_argument("--work", type=Path, default=BUILD / "versus", help="where weights are")
    parser.add_argument("--store", type=Path, help="a store that is there")
    parser.add_argument("--gguf", type=Path, help="the GGUF of the same weights")
    parser.add_argument("--no-check", action="store_true", help="do not compare weights and logits")
    results.add_arguments(parser)
    given = parser.parse_args()
    if (given.store is None) != (given.gguf is None):
        parser.error("--store and --gguf go together")
    for path in (given.store and given.store / MANIFEST, given.gguf):
        if path is not None and not path.exists():
            parser.error(f"{path} is missing")
    given.env = environments(parser, given.env or [str(BUILD / "llamacpp")])
    return given, versus_cases.case_of(parser, given)


def environments(parser: argparse.ArgumentParser, words: list[str]) -> dict[str, Path]:
    """Folders by the names of their builds."""
    found: dict[str, Path] = {}
    for word in words:
        build, equals, folder = word.partition("=")
        if not equals:
            build, folder = NATIVE, word
        if build not in BUILDS or build in found:
            parser.error(f"--env {word}: give each of {', '.join(BUILDS)} at most once")
        found[build] = Path(folder)
    return found


def tell(line: str) -> None:
    """Progress, for a person."""
    print(line, file=sys.stderr, flush=True)


def weights(given: argparse.Namespace, case: Case) -> tuple[Path, Path | None]:
    """Store and GGUF, made where they are missing; None where llama.cpp takes no part."""
    if given.store is not None:
        return given.store, given.gguf
    folder = given.work / case.model_name()
    store, gguf = folder / "store", folder / "model.gguf" if case.peers else None
    if not (store / MANIFEST).exists():
        command = [sys.executable, str(HERE / "synthetic.py"), case.shape, "--out", str(store)]
        wanted = {"skew": case.skew, "layers": case.layers, "distinct": case.distinct}
        for name, value in {**wanted, "gguf": gguf}.items():
            command += [] if value is None else [f"--{name}", str(value)]
        folder.mkdir(parents=True, exist_ok=True)
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            sys.exit("error: the weights were not written: see above")
    elif gguf is not None and not gguf.exists():
        write_gguf(gguf, store, tell)
    return store, gguf


def turns(sides: Sides) -> dict[str, list[dict[str, Any]]]:
    """Every run's figures by side, in the order of the turns."""
    case = sides.case
    found: dict[str, list[dict[str, Any]]] = {"flashmoe": []}

    def run(turn: int, peer: Peer) -> None:
        tell(f"turn {turn + 1} of {case.repeat}: llama.cpp, {peer.name}")
        runs = found.setdefault(peer.name, [])
        runs.append(run_peer(sides, peer))
        tell(f"  {brief(runs[-1])}")

    peers = tuple(peer.of(build) for build in sides.pythons for peer in case.peers)
    for turn in range(case.repeat):
        tell(f"turn {turn + 1} of {case.repeat}: flashmoe")
        found["flashmoe"].append(run_ours(sides))
        tell(f"  {brief(found['flashmoe'][-1])}")
        for peer in peers:
            if peer.turns is None or turn < peer.turns:
                run(turn, peer)
        if case.prompts and turn == 0:
            peers = versus_prompts.best_peers(case, peers, found, partial(run, turn))
    return found


def brief(figures: dict[str, Any]) -> str:
    """One run in a line."""
    return (
        f"prompt {figures['pp_tok_s']:.2f}, decode {figures['tg_tok_s']:.3f} tok/s, "
        f"{figures['bytes_per_token'] / 1e6:.0f} MB a token"
    )


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Medians a side; a peer's ratio is ours over its own in the same turn.

    Both shares are of one limit, the one of our own reads: 1 / max(bytes missed / disk rate,
    bytes touched / memory rate), medians of what our runs found.
    """
    ours = runs["flashmoe"]
    limit = statistics.median(run["limit_tok_s"] for run in ours)
    found = {}
    for name, side in runs.items():
        one: dict[str, Any] = {
            key: statistics.median(run[key] for run in side)
            for key in MEDIANS
            if side[0].get(key) is not None
        }
        one["turns"] = len(side)
        for key in ("pp_tok_s", "tg_tok_s"):
            speeds = [run[key] for run in side]
            one[f"{key}_range"] = [min(speeds), max(speeds)]
        one |= {"limit_tok_s": limit, "share_of_limit": one["tg_tok_s"] / limit}
        if name != "flashmoe":
            for key in ("pp_tok_s", "tg_tok_s"):
                pairs = zip(ours, side, strict=False)
                ratios = [mine[key] / theirs[key] for mine, theirs in pairs]
                one[f"{key}_ratio"] = statistics.median(ratios)
                one[f"{key}_ratio_range"] = [min(ratios), max(ratios)]
            one |= {key: side[0][key] for key in OF_A_PEER}
        found[name] = one
    return found


def show(case: Case, found: dict[str, dict[str, Any]]) -> None:
    """The table."""
    print(
        f"{'':16} {'prompt':>8} {'decode':>8} {'range':>15} {'limit':>6} "
        f"{'MB/token':>8} {'RSS GiB':>8} {'faults':>7} {'ours is':>8} {'range':>13} {'prompt':>7}"
    )
    for name, one in found.items():
        low, high = one["tg_tok_s_range"]
        line = (
            f"{name:16} {one['pp_tok_s']:8.2f} {one['tg_tok_s']:8.3f} {low:7.3f}-{high:7.3f} "
            f"{one['share_of_limit']:6.1%} {one['bytes_per_token'] / 1e6:8.1f} "
            f"{one['peak_rss_bytes'] / 2**30:8.2f}"
        )
        if "tg_tok_s_ratio" in one:
            low, high = one["tg_tok_s_ratio_range"]
            line += f" {one['major_faults_per_token']:7.0f} {one['tg_tok_s_ratio']:7.2f}x "
            line += f"{low:6.2f}-{high:6.2f} {one['pp_tok_s_ratio']:6.2f}x"
        print(line)
    ours = found["flashmoe"]
    limit = "none" if case.ram_bytes is None else format_bytes(case.ram_bytes)
    print(
        f"memory limit {limit}, {'cold' if case.cold else 'warm'}; limit on decoding "
        f"{ours['limit_tok_s']:.2f} tok/s at {ours['disk_bytes_s'] / 1e9:.2f} GB/s from disk and "
        f"{ours['memory_bytes_s'] / 1e9:.1f} GB/s from memory"
    )


def commands(sides: Sides, peers: tuple[Peer, ...]) -> dict[str, str]:
    """What was run, without the places of files."""
    shown = shlex.join(["flashmoe", *sides.command()]).replace(str(sides.store), "STORE")
    options = "; ".join(
        f"{peer.name}: read-ahead {peer.read_ahead_kib or 'as found'}"
        f"{', repacked' if peer.repack else ''}"
        for peer in peers
    )
    if not peers:
        return {"flashmoe": shown}
    builds = ", ".join(sides.pythons)
    return {"flashmoe": shown, "llama.cpp": f"{builds}; {options}; {sides.threads} threads"}


def checked(sides: Sides, gguf: Path) -> dict[str, dict[str, float]]:
    """How alike the logits of ours and of each build are; ends where they are of two models."""
    tell("comparing weights and logits")
    tell(f"  {check_weights(sides.store, gguf)} matrices are equal, every bit")
    found = {}
    for build in sides.pythons:
        found[build] = agreement(sides, MAPPED.of(build))
        tell(f"  {build}: {found[build]}")
    return found


def main() -> None:
    """Prepare, check, measure, print."""
    # So that what was changed is put back when the bench is ended from outside.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    signal.signal(signal.SIGHUP, lambda number, frame: sys.exit(128 + number))
    given, case = arguments()
    with Confinement(case.ram_bytes):
        pass  # where no limit can be set, that is told before minutes are spent
    builds = given.env if case.peers else {}
    pythons = {name: llamacpp_environment.prepared(path, name) for name, path in builds.items()}
    store, gguf = weights(given, case)
    sides = Sides(case, store, gguf, pythons)
    agreed = None if gguf is None or given.no_check else checked(sides, gguf)
    tell(f"memory touched once, in {back_memory():.1f} s")
    resident = None
    if case.prompts and case.ram_bytes is not None:
        tell("the arithmetic: flashmoe with all memory")
        resident = run_resident(sides)
        tell(f"  {brief(resident)}")
    runs = turns(sides)
    found = summary(runs)
    if case.prompts:
        versus_prompts.add_limit(case, found, resident)
        versus_prompts.show(case, found, resident)
    else:
        show(case, found)
    theirs = [side for side in found.values() if "build" in side]
    versions = {"flashmoe": __version__}
    versions |= {BUILDS[side["build"]].package: BUILDS[side["build"]].version for side in theirs}
    versions["llama.cpp"] = ", ".join(dict.fromkeys(side["library"] for side in theirs))
    for build, side in {side["build"]: side for side in theirs}.items():
        print(f"{build}: llama.cpp {side['library']}, built for {' '.join(side['features'])}")
    if resident is not None:
        resident = {key: resident[key] for key in versus_prompts.RESIDENT}
    line = {
        "bench": "versus_llamacpp",
        "case": given.case,
        "work": asdict(case),
        "agreement": agreed,
        "sides": found,
        "resident": resident,
        "versions": versions,
        "commands": commands(sides, case.peers),
    }
    for name, command in line["commands"].items():
        print(f"{name} {versions[name]}: {command}")
    results.save_if_asked(given, "versus_llamacpp", line, {"case": given.case, **asdict(case)})
    print(json.dumps(line))


if __name__ == "__main__":
    run(main)
