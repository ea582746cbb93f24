# Everything a person or a machine does with this tree. `make` alone lists it.
#
#   make PYTHON=python3.12 build     another interpreter
#   make demo ONCE=1                 end after the requests instead of serving on
#   make demo ENGINE=triton          a real Triton instead of simulated engines
#   make lab TRACE=trace.jsonl       a trace instead of made-up chats

SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests wait a third of their time.
JOBS ?= $(shell expr $$(nproc) \* 3 / 2)
PIP := $(BIN)/python -m pip --disable-pip-version-check
ONCE ?=
ENGINE ?=
TRACE ?= chat --limit 10000 --rates 7,9 --seeds 1
ARGS ?=

PACKAGES := gateway router engines scaler bench
CYTHON_SOURCES := $(shell find $(PACKAGES) -name '*.pyx' -o -name '*.pxd')

# Stamps: what is newer than them has to be done again.
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help preflight build demo check test test-engines soak bench lab dist clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

preflight: ## Say what this machine lacks, and how to get it
	@PYTHON='$(PYTHON)' ./.ci/preflight

build: $(BUILT) ## Build into .venv; only what has changed

demo: $(BUILT) ## Gateway over simulated engines (ENGINE=triton: a real one), with requests
	@$(BIN)/python -m bench.demo $(if $(ENGINE),--engine $(ENGINE)) \
	    $(if $(filter-out 0,$(ONCE)),--once) $(ARGS)

check: $(BUILT) ## Lint, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint $(PACKAGES)  # it calls pycodestyle by name
	$(BIN)/python -m pytest -q tests/test_cimports.py

test: $(BUILT) ## The test suite (ARGS='-k name' picks some)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(ARGS)

test-engines: $(BUILT) ## Against real engines, where the machine can have them
	$(BIN)/python -m pytest -q tests/triton tests/vllm -m "engines and not soak" $(ARGS)

soak: $(BUILT) ## Long runs: leaks, drift, churn
	$(BIN)/python -m pytest -m soak tests $(ARGS)

bench: $(BUILT) ## Measure
	$(BIN)/python -m bench.run $(ARGS)

lab: $(BUILT) ## Policies side by side in virtual time (TRACE=file; ARGS='--ablate')
	$(BIN)/python -m bench.lab $(TRACE) $(ARGS)

dist: $(BUILT) ## Source archive, and a wheel built from it, in dist/
	rm -rf dist
	$(BIN)/python setup.py -q sdist
	$(PIP) wheel -q --no-deps --wheel-dir dist dist/*.tar.gz
	@ls -l dist

clean: ## Remove what was built; .venv stays (delete it to begin from nothing)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	rm -rf .hypothesis .benchmarks $(BUILT)
	find $(PACKAGES) -name '*.so' -delete
	find $(PACKAGES) -name '*.pyx' | sed 's/pyx$$/c/' | xargs rm -f
	find $(PACKAGES) tests -name __pycache__ -prune -exec rm -rf {} +

# What the build itself needs stays in .venv, for the rule below; see setup.py for the rest.
$(INSTALLED): pyproject.toml setup.py
	@PYTHON='$(PYTHON)' ./.ci/preflight
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import tomllib; \
	    print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	    | $(PIP) install -q -r /dev/stdin
	HEADGATE_EXTENSIONS=0 $(PIP) install -q --no-build-isolation -e '.[dev]'
	@touch $@

$(BUILT): $(INSTALLED) $(CYTHON_SOURCES)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@
