# `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DIGITS := build/demo/digits

# Three processes, as tests that wait for others leave a core idle; each file of tests in one of them. PARALLEL= gives one,
# for a debugger.
PARALLEL ?= -n 3 --dist loadfile

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# Nothing but the package index may be needed from the network.
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A path set outside would put the checkout before the installed package.
unexport PYTHONPATH
# The suite starts hundreds of processes, and without bytecode each would compile what it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint types docs custom-store wheel-test clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

KERNEL := $(addprefix clipretrieval/encoding/engine/,winograd.c winograd_fp32.h)

# The stamps lie in the environment and are touched last: an environment without them is not done.
$(VENV)/installed: pyproject.toml hatch_build.py $(KERNEL)
	@.ci/install $(PYTHON) $(VENV) .
	@touch $@

$(VENV)/installed-dev: pyproject.toml hatch_build.py $(KERNEL)
	@.ci/install $(PYTHON) $(VENV) '.[dev]'
	@touch $(VENV)/installed $@

$(VENV)/installed-docs: pyproject.toml hatch_build.py $(KERNEL)
	@.ci/install $(PYTHON) $(VENV) '.[docs]'
	@touch $(VENV)/installed $@

demo: $(VENV)/installed ## classify drawn pictures at every stage with the CLIP that ships with the package
	$(BIN)/clipretrieval demo --out build/demo

# Test processes share the cores, so no thread that has nothing to do may spin on one: OpenMP's need not, OpenBLAS's always do.
test wheel-test: export OMP_WAIT_POLICY := PASSIVE
test wheel-test: export OPENBLAS_NUM_THREADS := 1

test: $(VENV)/installed-dev ## run the tests, the documentation's examples among them
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(VENV)/installed-dev ## check the code and its format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev ## check the types with mypy
	$(BIN)/mypy

docs: $(VENV)/installed-docs ## build the documentation into build/docs; a warning is an error
	rm -rf docs/api/generated
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

custom-store: $(VENV)/installed-dev ## install the example of a package that brings a store, and use it
	@BIN=$(BIN) DIGITS=$(DIGITS) .ci/custom-store

wheel-test: $(VENV)/installed-dev ## build the distributions and test the installed wheel in a fresh environment
	@BUILD_PYTHON=$(BIN)/python PYTHON=$(PYTHON) PARALLEL="$(PARALLEL)" .ci/wheel-test

clean: ## remove what the targets wrote, except the environment
	rm -rf build dist docs/api/generated .venv-wheel .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove the environment too
	rm -rf $(VENV) clipretrieval/encoding/engine/_winograd.so
