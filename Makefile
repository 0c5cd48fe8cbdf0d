# What there is to do here: run, test, check, bench, clean. PYTHON names the interpreter to build .venv with.
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt
BASE := $(VENV)/.installed-base
DEV := $(VENV)/.installed-dev

.PHONY: run test check lint bench clean

run: $(BASE)  ## answer the first question: who should host the accelerators?
	@$(BIN)/placewright run scenarios/chat-on-one-node.yaml --out out/chat-on-one-node

test: $(DEV) lint  ## everything CI runs
	@$(BIN)/python -m pytest -q -n 2

check: $(DEV) lint  ## what to run after every change; under a minute
	@$(BIN)/python -m pytest -q -n 2 -m "not slow"

lint: $(DEV)
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo > $(VENV)/lint-imports.txt || { cat $(VENV)/lint-imports.txt; false; }

bench: $(DEV)  ## timings; compare before and after, never in CI
	@$(BIN)/python -m pytest -q -o addopts= tests/benchmarks

clean:
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
	find simulator tests -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml constraints-cpu.txt | $(BIN)/python
	@echo "Installing into $(VENV)"
	@$(INSTALL) -e .
	@touch $@

$(DEV): pyproject.toml constraints-cpu.txt | $(BIN)/python
	@echo "Installing into $(VENV), with what tests and checks need"
	@$(INSTALL) -e '.[dev]'
	@touch $(BASE) $@
