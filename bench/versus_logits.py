"""Our logits of given ids, written to a file; run as a process of its own within a limit.

.venv/bin/python bench/versus_logits.py '{"store": …, "ids": […], "logits": "ours.npy", …}'
"""

from __future__ import annotations

import json
import sys

import numpy as np
from command import run

from flashmoe.engine import Engine
from flashmoe.options import Budget


def main() -> None:
    """Do what the JSON object on the command line asks; print the shape."""
    try:
        given = json.loads(sys.argv[1])
    except (IndexError, ValueError):
        sys.exit((__doc__ or "").strip())
    budget = Budget(ram_bytes=given["ram_bytes"], context_tokens=len(given["ids"]))
    with Engine.open(given["store"], budget=budget, experts_per_token=given["experts"]) as engine:
        logits = engine.session().logits(given["ids"])
    np.save(given["logits"], logits.astype(np.float32))
    print(json.dumps({"shape": logits.shape}))


if __name__ == "__main__":
    run(main)
