# Everything runs in a virtual environment of its own, .venv; `make setup` makes it.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# A checkout that was set up and is read-only now passes its checks: nothing is cached in it.
ifneq ($(shell test -w . && echo writable),writable)
export RUFF_NO_CACHE := true
export MYPY_CACHE_DIR := /dev/null
LINT_IMPORTS_FLAGS := --no-cache
endif

# Says in one line what is missing, to any Python, before anything is made.
define REQUIRE_PYTHON
import sys
if sys.version_info < (3, 10):
    sys.exit("cln-backup needs Python 3.10 or later, and %s is %d.%d. "
             "Name a later one: make setup PYTHON=/usr/bin/python3.11"
             % ((sys.executable,) + tuple(sys.version_info[:2])))
try:
    import ensurepip, venv
except ImportError:
    sys.exit("%s cannot make virtual environments: the module venv or ensurepip is missing. "
             "On Debian and Ubuntu: apt install python3-venv" % sys.executable)
endef
export REQUIRE_PYTHON

.PHONY: setup demo lint test check soak bench fuzz dist release docs man clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@"$(PYTHON)" -c "$$REQUIRE_PYTHON"
	"$(PYTHON)" -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -m compileall -q src
	touch $@

# The backup is in a directory, or in an engine that is started for it: make demo ENGINE=s3
demo: setup
	$(BIN)/python -m demo $(ENGINE)

test: setup
	$(BIN)/pytest -n auto

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports $(LINT_IMPORTS_FLAGS)
	$(BIN)/mypy

check: lint test

bench: setup
	$(BIN)/python -m bench

# All of the long searches, of which `make test` runs a part, and what takes 15 GB of disk.
soak: setup
	CLN_BACKUP_SOAK=1 $(BIN)/pytest -n auto

# A longer search for damage that the reader of format 2 takes for something else.
fuzz: setup
	$(BIN)/python -m tests.format2.fuzz $(or $(SECONDS),600)

# The source archive, and the wheel that is built from it.
dist: setup
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

# All that is published: docs/tasks/releasing.md.
release: setup
	contrib/release/build dist

# The site of the documents; a warning is an error.
docs: setup
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html -d build/doctrees docs build/site
	@echo "The site is build/site/index.html."

# The man pages, after a change of the help or of docs/cli.md.
man: setup
	$(BIN)/python contrib/man/make.py

clean:
	rm -rf .venv build dist
