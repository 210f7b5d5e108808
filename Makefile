PYTHON ?= python3
BIN := .venv/bin

.PHONY: install serve test check bench

install: .venv/installed

.venv/installed: pyproject.toml deploy/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint deploy/constraints.txt --editable '.[dev]'
	touch $@

serve: install
	@exec $(BIN)/volo serve

test: install
	$(BIN)/pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: install
	$(BIN)/volo bench model
	$(BIN)/volo bench preprocess
	$(BIN)/volo bench serve
