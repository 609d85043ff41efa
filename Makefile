# Two commands on a machine with Python 3.11, 3.12 or 3.13 and make: `make demo` and `make test`.
# Each builds .venv from the pinned lists where it is missing or out of date, and starts at once where it is not.

# 3.11 first: CI runs on it.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
TESTS ?=
GPU_PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu lint types contracts docs lock bench wheel clean

help:  ## List the commands.
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 18

demo: .venv/runtime  ## Generate a log, train, export, score and write a report: make demo ARGS="--json"
	$(BIN)/recsys demo $(ARGS)

test: .venv/dev  ## Run the tests: make test TESTS=tests/models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(TESTS)

test-gpu:  ## The tests that need a GPU, with the Python of the CUDA build: make test-gpu GPU_PYTHON=python3
	OMP_NUM_THREADS=1 $(GPU_PYTHON) -m pytest -m gpu -p no:cacheprovider --continue-on-collection-errors $(TESTS)

lint: .venv/dev  ## Style and format of the code.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev  ## Strict types.
	$(BIN)/mypy

contracts: .venv/dev  ## Rooms and wings import one way, no circles: what pyproject.toml lists under importlinter.
	$(BIN)/lint-imports

docs: .venv/dev  ## Build the pages into site/, offline and strictly.
	NO_MKDOCS_2_WARNING=1 PYTHONWARNINGS=ignore $(BIN)/mkdocs build --strict --quiet

bench: .venv/dev  ## All benchmarks, or one: make bench NAME=prepare KEEP=1
	$(BIN)/python -m benchmarks $(NAME) $(if $(KEEP),--keep)

lock: .venv/dev  ## Write the pinned lists again from .venv.
	$(BIN)/python requirements/lock.py

wheel: .venv/dev  ## Build wheel and sdist into dist/.
	$(BIN)/python -m build --no-isolation

clean:  ## Remove the environment and everything that was built.
	rm -rf .venv build dist site

.venv/runtime: requirements/cpu.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: install one, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is another version: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) -r requirements/cpu.txt
	$(PIP_INSTALL) --no-build-isolation --editable .
	touch $@

.venv/dev: requirements/dev.txt .venv/runtime
	$(PIP_INSTALL) -r requirements/dev.txt
	touch $@
