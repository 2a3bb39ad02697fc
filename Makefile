# Everything runs in .venv, which is made here and only made again when what it is made from changes.
# Works with GNU make 3.81, the one that macOS has.

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python

# The Python that makes .venv, 3.11 or newer: python3, else the newest that was tried. PYTHON=… takes another.
PYTHON ?=
MIN_PYTHON := 3, 11

# MLX's backend: Metal comes with mlx on macOS, the others are extras of pyproject.toml. EXTRA=… takes another.
UNAME := $(shell uname -s)
ifeq ($(UNAME),Darwin)
EXTRA ?=
else ifneq ($(wildcard /proc/driver/nvidia/version),)
EXTRA ?= cuda
else
EXTRA ?= cpu
endif

# Two tests at once: threads of OpenBLAS that wait for each other would take what the other test needs.
TWO_AT_ONCE := OPENBLAS_NUM_THREADS=1

# What one command has compiled need not be compiled by the next.
unexport PYTHONDONTWRITEBYTECODE

# What a user says goes to the commands through the environment, as it was typed: make expands
# nothing in it, and the shell never reads it as its own words.
override RECORDING := $(value RECORDING)
override MODEL := $(value MODEL)
override PROMPT := $(value PROMPT)
override PROMPT_FILE := $(value PROMPT_FILE)
export RECORDING MODEL PROMPT PROMPT_FILE

# The demo keeps its store apart from the user's, and takes no setting of theirs.
DEMO_HOME ?= $(CURDIR)/.seeonce-demo
DEMO := env -u SEEONCE_MODEL -u SEEONCE_RECORDINGS SEEONCE_HOME="$(DEMO_HOME)"

# The training of the demo checkpoint: hours, and its own dependencies (torch).
OUT ?= build/demo-checkpoint
TRAIN_ARGS ?=

.PHONY: help demo test check campaign docs encode describe verify train-demo clean FORCE
.DEFAULT_GOAL := help

help:
	@echo "make demo        encode the demo recording, describe it, verify it"
	@echo "make encode      pass one   RECORDING=latest|demo|id|folder|video MODEL=…"
	@echo "make describe    pass two   RECORDING=… MODEL=… PROMPT=… or PROMPT_FILE=…"
	@echo "make verify      compare what is stored with live encoding   RECORDING=… MODEL=…"
	@echo "make test        the tests, under 5 minutes"
	@echo "make check       format, lint, types"
	@echo "make campaign    the long fault and equality campaigns"
	@echo "make docs        write docs/commands.md from the commands' own help"
	@echo "make train-demo  train the demo checkpoint, hours   OUT=$(OUT) TRAIN_ARGS='--minutes 60'"
	@echo "make clean       remove what make made"
	@echo
	@echo "PYTHON=python3.12 makes .venv with another Python, EXTRA=cpu|cuda with another backend of MLX."

# A stamp per set of packages says that .venv has it.
BACKEND := $(if $(EXTRA),$(EXTRA),plain)
RUNTIME := $(VENV)/.installed-$(BACKEND)
DEV := $(VENV)/.installed-$(BACKEND)-dev
TRAIN := $(VENV)/.installed-$(BACKEND)-train
PIP := $(VENV_PYTHON) -m pip --disable-pip-version-check
PACKAGES := -c constraints.txt -e '.$(if $(EXTRA),[$(EXTRA)])'

# A .venv whose Python has gone is made again.
VENV_WORKS := $(shell $(VENV_PYTHON) -c "" 2>/dev/null && echo yes)

$(RUNTIME): pyproject.toml constraints.txt $(if $(VENV_WORKS),,FORCE)
	@set -e; \
	$(VENV_PYTHON) -c "" 2>/dev/null || { \
		is_new='import sys; sys.exit(sys.version_info < ($(MIN_PYTHON)))'; \
		for candidate in "$(PYTHON)" python3 python3.13 python3.12 python3.11; do \
			test -n "$$candidate" || continue; \
			"$$candidate" -c "$$is_new" 2>/dev/null && { found="$$candidate"; break; }; \
			test "$$candidate" != "$(PYTHON)" || { echo "PYTHON=$(PYTHON) is no Python 3.11 or newer." >&2; exit 1; }; \
		done; \
		test -n "$$found" || { \
			echo "seeonce needs Python 3.11 or newer; found none as python3, python3.13, python3.12 or python3.11." >&2; \
			echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }; \
		echo "Making $(VENV) with $$("$$found" --version)."; \
		rm -rf $(VENV); \
		"$$found" -m venv $(VENV) || { \
			rm -rf $(VENV); \
			echo "$$found cannot make a virtual environment (on Debian: apt install python3-venv)." >&2; exit 1; }; \
	}
	@echo "Installing seeonce and what it needs; a few minutes the first time."
	@# Python compiles what is imported; all that is installed would take longer than the demo saves by it.
	@# The pip that older versions of Python bring takes half as long again.
	@$(PIP) install -qq --no-compile 'pip>=25.1'
	@$(PIP) install -qq --no-compile $(PACKAGES)
	@touch $@

$(DEV): $(RUNTIME)
	@$(PIP) install -qq -c constraints.txt --group dev
	@touch $@

$(TRAIN): $(RUNTIME)
	@$(PIP) install -qq -c constraints.txt --group train
	@touch $@

FORCE:

demo: $(RUNTIME)
	@echo '$$ seeonce encode demo'
	@$(DEMO) $(VENV)/bin/seeonce encode demo
	@echo
	@echo '$$ seeonce describe demo'
	@$(DEMO) $(VENV)/bin/seeonce describe demo
	@echo
	@echo '$$ verify-cache demo'
	@$(DEMO) $(VENV)/bin/verify-cache demo
	@echo
	@echo 'To type these yourself: export PATH="$(CURDIR)/$(VENV)/bin:$$PATH"'

encode: $(RUNTIME)
	@$(VENV)/bin/seeonce encode $${MODEL:+--model="$$MODEL"} $${RECORDING:+-- "$$RECORDING"}

describe: $(RUNTIME)
	@$(VENV)/bin/seeonce describe $${MODEL:+--model="$$MODEL"} $${PROMPT:+--prompt="$$PROMPT"} \
		$${PROMPT_FILE:+--prompt-file="$$PROMPT_FILE"} $${RECORDING:+-- "$$RECORDING"}

verify: $(RUNTIME)
	@$(VENV)/bin/verify-cache $${MODEL:+--model="$$MODEL"} $${RECORDING:+-- "$$RECORDING"}

check: $(DEV)
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m mypy

test: $(DEV)
	$(TWO_AT_ONCE) $(VENV_PYTHON) -m pytest -n 2 --dist worksteal -m "not campaign"

campaign: $(DEV)
	$(VENV_PYTHON) -m pytest -m campaign -rP --show-capture=stdout

docs: $(DEV)
	$(VENV_PYTHON) -m seeonce.commands.reference

train-demo: $(TRAIN)
	$(VENV_PYTHON) -m seeonce.demo.train --out "$(OUT)" $(TRAIN_ARGS)

# build/ stays: a checkpoint that took hours may lie there.
clean:
	rm -rf $(VENV) .seeonce-demo .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
