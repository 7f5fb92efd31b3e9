# `make serve` and `make test` bring a bare machine all the way; both are quick the second time.
# On a machine with an NVIDIA GPU the newest torch is taken, elsewhere TORCH (override: make serve TORCH=torch).
# PIP_EXTRA_INDEX_URL, PIP_INDEX_URL and pip's other settings do what they do elsewhere.

ifeq ($(filter oneshell,$(.FEATURES)),)
$(error GNU make 3.82 or newer is needed (macOS: brew install make, then gmake in place of make))
endif

.ONESHELL:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help serve test lint format browser clean

VENV := .venv
BIN := $(VENV)/bin
TORCH ?= $(if $(shell command -v nvidia-smi),torch>=2.8,torch==2.13.0)
ARGS ?=

# pip's errors are shown, its warnings about the machine's settings are not. What it has finished is kept, so the
# next run takes up where a failed one stopped.
define pip_install
	$(BIN)/python -m pip install -qq --disable-pip-version-check $(1) || {
	  echo "pip could not install $(1); its own reason is above. 'No matching distribution ... (from versions: none)' means that" >&2
	  echo "it did not reach a package index: check the network or proxy, then run make again, which goes on from here" >&2
	  exit 1
	}
endef

help:
	@echo "make serve   set up and run the tiny world on http://localhost:8080 (ARGS='--port 9000' adds options)"
	@echo "make test    set up and run every test, the browser's included"
	@echo "make lint    ruff's checks; make format mends what it can"
	@echo "make clean   remove the virtual environment and caches"

serve: $(VENV)/installed
	@exec $(BIN)/python -m stream serve $(ARGS)

test: $(VENV)/installed-test browser
	@$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet . || { echo "make format lays these files out anew" >&2; exit 1; }
	CHROMIUM="$$(tests/chromium)" exec $(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/installed-test
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed-test
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

browser:
	@tests/chromium --install >/dev/null

clean:
	@rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info

# A Python that pyproject.toml allows and that can make environments: `python3` alone may be too old, too new, or
# without its venv package.
$(BIN)/python:
	@[ -w . ] || { echo "nothing can be written to $$PWD, and the environment belongs in its $(VENV): clone chunkcast to a folder of yours" >&2; exit 1; }
	fits="" complete="" candidates=(python3 python3.12 python3.11 python)
	[ -z "$${PYTHON:-}" ] || candidates=("$$PYTHON")
	for python in "$${candidates[@]}"; do
	  "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null || continue
	  fits="$${fits:-$$python}"
	  if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then complete="$$python"; break; fi
	done
	[ -n "$$fits" ] || { echo "chunkcast needs Python 3.11 or 3.12, and none of these is: $${candidates[*]}. Install one, or name it with make ... PYTHON=/path/to/python" >&2; exit 1; }
	[ -n "$$complete" ] || { echo "$$fits cannot make virtual environments: install its venv package (Debian: apt-get install python3-venv)" >&2; exit 1; }
	"$$complete" -m venv --clear $(VENV) || { rm -rf $(VENV); echo "$$complete made no virtual environment in $$PWD/$(VENV); its own reason is above" >&2; exit 1; }

# A run that was killed while the environment was made may have left it without pip.
$(VENV)/installed: pyproject.toml $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	echo "installing $(TORCH) and chunkcast into $(VENV); the first time takes minutes ..."
	$(call pip_install,'$(TORCH)')
	$(call pip_install,--editable .)
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo "installing what the tests need ..."
	$(call pip_install,--editable '.[test]')
	touch $@
