"""A store of a published model's true shape with random weights, to measure with.

    .venv/bin/python bench/synthetic.py qwen3.5-35b-a3b --out /tmp/35b [--gguf /tmp/35b.gguf]

--distinct D writes D layer files and lets the others be hard links to them: each layer is still
cached and read as its own, with real reads, on a fraction of the disk. --skew S makes some
experts more popular than others; 0.2 gives the busiest quarter 55 % of activations, as trained
models do. --gguf writes the same weights for llama.cpp, as Q4_0 (the
router, norms and the like as F32). Refuses to begin where the disk has no room. Prints one JSON
line at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from command import check_space, run
from synthetic_gguf import gguf_bytes, write_gguf
from synthetic_shapes import ATTENTION_EVERY, GROUP, SIZES, model_shape, trunk_tensors
from synthetic_store import write_store

from flashmoe.quant import Affine
from flashmoe.shape import ModelShape
from flashmoe.store.layout import RecordLayout, layer_header, trunk_header


def store_bytes(shape: ModelShape, bits: int, distinct: int) -> int:
    """What the weight files take on disk."""
    form = Affine(bits, GROUP)
    layout = RecordLayout(form, form, form, shape.hidden, shape.experts.intermediate)
    count = shape.experts.count
    layer = len(layer_header(layout, count)) + count * layout.record_bytes
    _, extents = trunk_header(trunk_tensors(shape))
    return distinct * layer + max(offset + nbytes for offset, nbytes in extents.values())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SIZES, metavar="SHAPE", help=", ".join(SIZES))
    parser.add_argument("--layers", type=int, help="instead of the model's own number")
    parser.add_argument("--distinct", type=int, help="layer files; the others are hard links")
    parser.add_argument("--bits", type=int, default=4, choices=(2, 3, 4, 8), help="of the experts")
    parser.add_argument("--skew", type=float, default=0.0, help="0: all experts alike")
    parser.add_argument("--out", type=Path, required=True, help="directory of the store")
    parser.add_argument("--gguf", type=Path, help="the same weights for llama.cpp")
    given = parser.parse_args()
    if given.layers is not None and not 0 < given.layers <= 4096:
        parser.error("--layers is from 1 to 4096")
    layers = given.layers or SIZES[given.shape].layers
    given.distinct = given.distinct or layers
    if not 0 < given.distinct <= layers:
        parser.error(f"--distinct is from 1 to the {layers} layers")
    if not 0 <= given.skew <= 4:
        parser.error("--skew is from 0 to 4")
    if given.gguf is not None and given.bits != 4:
        parser.error("--gguf holds 4 bits: leave out --bits")
    if given.gguf is not None and layers < ATTENTION_EVERY:
        parser.error(f"llama.cpp wants a layer of attention: give {ATTENTION_EVERY} layers or more")
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        parser.error(f"{given.out} exists and is not an empty directory: remove it")
    return given


def main() -> None:
    """Write what was asked for."""
    given = arguments()
    shape = model_shape(given.shape, given.layers)
    wanted = {given.out / "layer": store_bytes(shape, given.bits, given.distinct)}
    if given.gguf is not None:
        wanted[given.gguf] = gguf_bytes(shape)
    check_space(wanted, "give --distinct, --layers or another disk")
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", file=sys.stderr, flush=True)

    if given.distinct < shape.layers:
        tell(f"{given.distinct} distinct layer files serve all {shape.layers} layers")
    options = {"bits": given.bits, "distinct": given.distinct, "skew": given.skew}
    write_store(given.out, shape, **options, name=given.shape, tell=tell)
    store_seconds = time.monotonic() - began
    if given.gguf is not None:
        write_gguf(given.gguf, given.out, tell)
    line = {
        "bench": "synthetic",
        "shape": given.shape,
        "layers": shape.layers,
        **options,
        "store_bytes": next(iter(wanted.values())),
        "store_seconds": round(store_seconds, 2),
        "gguf_bytes": wanted.get(given.gguf, 0),
        "gguf_seconds": round(time.monotonic() - began - store_seconds, 2),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    run(main)
