"""flashmoe and llama.cpp on the same weights, in the same memory, in turns in one run.

    .venv/bin/python bench/versus_llamacpp.py --case a-8g [--save]
    .venv/bin/python bench/versus_llamacpp.py qwen3.5-35b-a3b --layers 4 --ram 1200MiB

Writes a store of random weights and the same weights as GGUF below --work, or uses those it
finds there (--store and --gguf name others). llama.cpp lives in an environment of its own,
--env, which is built where it is missing and takes a quarter of an hour. Run it as root on an
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
from pathlib import Path
from typing import Any

import llamacpp_environment
import results
import versus_cases
from synthetic_gguf import write_gguf
from versus_cases import Case, Peer
from versus_runs import HERE, Sides, agreement, check_weights, run_ours, run_peer

from flashmoe import __version__
from flashmoe.store.layout import MANIFEST
from flashmoe.stream.units import format_bytes

BUILD = HERE.parent / "build"
MEDIANS = (
    "pp_tok_s", "tg_tok_s", "bytes_per_token", "peak_rss_bytes", "major_faults_per_token",
    "ms_system_per_token", "prompt_bytes_per_token", "ttft_ms", "load_s", "hit_rate",
    "limit_tok_s", "share_of_limit", "disk_bytes_s", "memory_bytes_s", "missed_bytes_per_token",
    "python_share", "ms_read_wait_per_token",
)  # fmt: skip


def arguments() -> tuple[argparse.Namespace, Case]:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    versus_cases.add_arguments(parser)
    parser.add_argument("--env", type=Path, default=BUILD / "llamacpp", help="llama.cpp's")
    parser.add_argument("--work", type=Path, default=BUILD / "versus", help="where weights are")
    parser.add_argument("--store", type=Path, help="a store that is there")
    parser.add_argument("--gguf", type=Path, help="the GGUF of the same weights")
    parser.add_argument("--no-check", action="store_true", help="do not compare weights and logits")
    results.add_arguments(parser)
    given = parser.parse_args()
    if (given.store is None) != (given.gguf is None):
        parser.error("--store and --gguf go together")
    return given, versus_cases.case_of(parser, given)


def tell(line: str) -> None:
    """Progress, for a person."""
    print(line, file=sys.stderr, flush=True)


def weights(given: argparse.Namespace, case: Case) -> tuple[Path, Path | None]:
    """Store and GGUF, made where they are missing; None where llama.cpp takes no part."""
    if given.store is not None:
        for path in (given.store / MANIFEST, given.gguf):
            if not path.exists():
                sys.exit(f"error: {path} is missing")
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
    for turn in range(case.repeat):
        tell(f"turn {turn + 1} of {case.repeat}: flashmoe")
        found["flashmoe"].append(run_ours(sides))
        tell(f"  {brief(found['flashmoe'][-1])}")
        for peer in case.peers:
            if peer.turns is None or turn < peer.turns:
                tell(f"turn {turn + 1} of {case.repeat}: llama.cpp, {peer.name}")
                runs = found.setdefault(peer.name, [])
                runs.append(run_peer(sides, peer))
                tell(f"  {brief(runs[-1])}")
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
        speeds = [run["tg_tok_s"] for run in side]
        one: dict[str, Any] = {
            key: statistics.median(run[key] for run in side) for key in MEDIANS if key in side[0]
        }
        one |= {"tg_tok_s_range": [min(speeds), max(speeds)], "turns": len(side)}
        one |= {"limit_tok_s": limit, "share_of_limit": one["tg_tok_s"] / limit}
        if name != "flashmoe":
            for key in ("pp_tok_s", "tg_tok_s"):
                pairs = zip(ours, side, strict=False)
                ratios = [mine[key] / theirs[key] for mine, theirs in pairs]
                one[f"{key}_ratio"] = statistics.median(ratios)
                one[f"{key}_ratio_range"] = [min(ratios), max(ratios)]
            one["read_ahead_kib"], one["library"] = side[0]["read_ahead_kib"], side[0]["library"]
            one["gen_tokens"] = side[0]["gen_tokens"]
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
    options = ", ".join(
        f"{peer.name}: read-ahead {peer.read_ahead_kib or 'as found'}"
        f"{', repacked' if peer.repack else ''}"
        for peer in peers
    )
    if not peers:
        return {"flashmoe": shown}
    return {"flashmoe": shown, "llama.cpp": f"{options}; {sides.threads} threads"}


def main() -> None:
    """Prepare, check, measure, print."""
    # So that what was changed is put back when the bench is ended from outside.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    signal.signal(signal.SIGHUP, lambda number, frame: sys.exit(128 + number))
    given, case = arguments()
    python = llamacpp_environment.prepared(given.env) if case.peers else None
    store, gguf = weights(given, case)
    sides = Sides(case, store, gguf, python)
    agreed = None
    if gguf is not None and not given.no_check:
        tell("comparing weights and logits")
        tell(f"  {check_weights(store, gguf)} matrices are equal, every bit")
        agreed = agreement(sides)
        tell(f"  {agreed}")
    runs = turns(sides)
    found = summary(runs)
    show(case, found)
    versions = {"flashmoe": __version__}
    for peer in case.peers:
        versions |= {"llama-cpp-python": llamacpp_environment.VERSION}
        versions |= {"llama.cpp": found[peer.name]["library"]}
    line = {
        "bench": "versus_llamacpp",
        "case": given.case,
        "work": asdict(case),
        "agreement": agreed,
        "sides": found,
        "versions": versions,
        "commands": commands(sides, case.peers),
    }
    for name, command in line["commands"].items():
        print(f"{name} {versions[name]}: {command}")
    results.save_if_asked(given, "versus_llamacpp", line, {"case": given.case, **asdict(case)})
    print(json.dumps(line))


if __name__ == "__main__":
    main()
