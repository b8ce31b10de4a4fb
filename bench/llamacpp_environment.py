"""Virtual environments for llama.cpp, each with one build of it.

Owns the versions and the ways they are built. They are apart from flashmoe's own environment
because a build takes a quarter of an hour on two cores, and nobody but one bench needs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

VERSION = "0.3.36"


@dataclass(frozen=True)
class Build:
    """A package, and the options of cmake; None takes the wheel as it is published."""

    package: str
    version: str
    options: str | None


BUILDS = {
    # GCC up to 12 takes _tile_loadconfig to read 8 bytes of its 64 and drops the stores of the
    # others, so that AMX's first product is an invalid instruction: no dead-store elimination.
    "native": Build("llama-cpp-python", VERSION, "-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS=-fno-dse"),
    "avx512": Build(
        "llama-cpp-python",
        VERSION,
        "-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON "
        "-DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_VBMI=ON "
        "-DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF",
    ),
    "ik": Build("ik-llama-cpp-python", "0.1.5", None),
}
"""``native`` is for this very processor, with AMX where it has that; ``avx512`` goes without;
``ik`` is ik_llama.cpp, as its wheel is: for AVX2."""


def prepared(folder: Path, name: str) -> Path:
    """The Python of an environment with such a build, which is made where there is none."""
    build, python = BUILDS[name], folder / "bin" / "python"
    if python.exists() and installed(python, build.package) == build.version:
        return python
    wanted = f"{build.package}=={build.version}"
    print(f"installing {wanted} ({name}) in {folder}: minutes, if it is built", file=sys.stderr)
    if not python.exists():
        venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "install", "-q"]
    environment = dict(os.environ)
    if build.options is not None:
        # pip keeps what it has built by version, whatever the options were.
        command += ["--no-cache-dir", "--no-binary", build.package]
        environment["CMAKE_ARGS"] = build.options
    done = subprocess.run([*command, wanted], env=environment)
    if done.returncode or installed(python, build.package) != build.version:
        sys.exit(
            f"error: {wanted} was not installed in {folder}: mend what pip reports above (it "
            "needs PyPI, a C++ compiler and cmake) and run again"
        )
    return python


def installed(python: Path, package: str) -> str | None:
    """The version of a package that an environment has."""
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    found = subprocess.run([str(python), "-c", ask], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None
