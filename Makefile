# `make setup` makes .venv; every other target calls it first. It does nothing when neither pyproject.toml, constraints.txt nor the C functions have changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.taskpack-installed
STORE  ?= demo-store
# Threads: a library that starts one thread per core in each of several test processes only makes them wait for one another.
TESTENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format serve clean

help:
	@echo "make setup   make .venv with everything the project needs, pinned"
	@echo "make demo    pack three tasks into one network, serve them, add one while it runs"
	@echo "make serve   serve the demo's store (STORE=path for another)"
	@echo "make test    the tests (under ten minutes on two cores)"
	@echo "make check   lint, types, import direction"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(wildcard service/engine/native/*)
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "error: '$(PYTHON)' was not found. Install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: '$(PYTHON)' is $$($(PYTHON) -V 2>&1); Taskpack needs Python 3.11 or newer. Name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' lacks the standard modules venv and ensurepip. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || { echo "Making $(VENV) with $$($(PYTHON) -V)"; "$(PYTHON)" -m venv --clear $(VENV); }
	@echo "Installing the pinned dependencies into $(VENV) (the first time: PyTorch, some gigabytes, a few minutes)"
	@$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

demo: setup
	@$(BIN)/python examples/demo.py --store "$(STORE)"

serve: setup
	@$(BIN)/taskpack serve "$(STORE)"

test: setup
	$(TESTENV) $(BIN)/pytest -n auto --maxprocesses 8

test-slow: setup
	$(TESTENV) $(BIN)/pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
