"""A virtual environment of its own for llama.cpp, built for this very processor.

Owns the version and the way it is built. It is apart from flashmoe's own environment because the
build takes a quarter of an hour on two cores, and nobody but one bench needs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

VERSION = "0.3.36"
PACKAGE = f"llama-cpp-python=={VERSION}"
BUILD = "-DGGML_NATIVE=ON"
ASK = "import llama_cpp; print(llama_cpp.__version__)"


def prepared(folder: Path) -> Path:
    """The Python of an environment that has llama.cpp, which is built where there is none."""
    python = folder / "bin" / "python"
    if python.exists() and installed(python) == VERSION:
        return python
    print(f"building {PACKAGE} in {folder} (about 15 minutes on 2 cores)", file=sys.stderr)
    if not python.exists():
        venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "install", "-q", "--no-binary", "llama-cpp-python"]
    built = subprocess.run([*command, PACKAGE], env={**os.environ, "CMAKE_ARGS": BUILD})
    if built.returncode or installed(python) != VERSION:
        sys.exit(
            f"error: {PACKAGE} was not built in {folder}: mend what pip reports above (it needs "
            "PyPI, a C++ compiler and cmake) and run again"
        )
    return python


def installed(python: Path) -> str | None:
    """The version of llama-cpp-python that an environment has."""
    found = subprocess.run([str(python), "-c", ASK], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None
