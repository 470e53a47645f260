# Everything runs in a virtual environment of its own, .venv; `make setup` makes it.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test check bench fuzz clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -m compileall -q src
	touch $@

demo: setup
	$(BIN)/python -m demo

test: setup
	$(BIN)/pytest -n auto

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pytest -n auto

bench: setup
	$(BIN)/python -m bench

# A longer search for damage that the reader of format 2 takes for something else.
fuzz: setup
	$(BIN)/python -m tests.format2.fuzz $(or $(SECONDS),600)

clean:
	rm -rf .venv build dist
