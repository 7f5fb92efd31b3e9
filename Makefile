# `make serve` and `make test` bring a bare machine all the way; both are quick the second time.
# On a machine with an NVIDIA GPU the newest torch is taken, elsewhere TORCH (override: make serve TORCH=torch).

.ONESHELL:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help serve test lint format browser clean

VENV := .venv
BIN := $(VENV)/bin
TORCH ?= $(if $(shell command -v nvidia-smi),torch>=2.8,torch==2.13.0)
ARGS ?=

help:
	@echo "make serve   set up and run the tiny world on http://localhost:8080 (ARGS='--port 9000' adds options)"
	@echo "make test    set up and run every test, the browser's included"
	@echo "make lint    ruff's checks; make format mends what it can"
	@echo "make clean   remove the virtual environment and caches"

serve: $(VENV)/installed
	@exec $(BIN)/chunkcast serve $(ARGS)

test: $(VENV)/installed-test browser
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .
	CHROMIUM="$$(tests/chromium)" $(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/installed-test
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(VENV)/installed-test
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

browser:
	@tests/chromium --install >/dev/null

clean:
	@rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info

# The recipe finds a Python that pyproject.toml allows, because `python3` alone may be too old or too new.
$(VENV)/bin/python:
	@for python in $${PYTHON:-} python3 python3.12 python3.11; do
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then found=$$python; break; fi
	done
	[ -n "$${found:-}" ] || { echo "chunkcast needs Python 3.11 or 3.12; name one with PYTHON=/path/to/python make ..." >&2; exit 1; }
	$$found -m venv $(VENV) || { rm -rf $(VENV); echo "$$found cannot make virtual environments: install its venv package (Debian: apt-get install python3-venv)" >&2; exit 1; }

$(VENV)/installed: pyproject.toml $(VENV)/bin/python
	@echo "installing $(TORCH) and chunkcast into $(VENV) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo "installing what the tests need ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@
