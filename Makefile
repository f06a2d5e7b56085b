# Everything a developer, a user or CI runs. Needs Python >= 3.11, Java 17 or 21 and make; says so when one is missing.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
AIRFLOW := $(HOME)/.cache/logpipe/airflow
WORKERS :=
OPTIONS :=
TESTS := $(wildcard tests/*.py tests/unit tests/property tests/contract tests/kubernetes tests/integration tests/e2e)

export VIRTUAL_ENV := $(CURDIR)/.venv

.DEFAULT_GOAL := help
.PHONY: help check install jars demo up down status logs test test-faults test-airflow test-kube lint types imports format bench bench-smoke bench-read bench-growth bench-traffic bench-footprints dashboards images secrets lock clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

check:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Python 3.11 or later is needed: install one, or run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "This Python cannot make virtual environments (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m services.local.java

install: check $(INSTALLED) jars ## Make .venv from the hash-pinned lock, and fetch the jars once

$(INSTALLED): pyproject.toml footprints/pyproject.toml requirements/bootstrap.txt requirements/lock.txt | check
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	$(BIN)/uv pip sync --quiet --no-build-isolation --require-hashes requirements/bootstrap.txt requirements/lock.txt
	$(BIN)/uv pip install --quiet --no-build-isolation --no-deps --editable . --editable footprints
	touch $@

jars: $(INSTALLED)
	@$(BIN)/python -m services.local.jars

demo: install ## Start everything, send a minute of load, verify, show the results
	$(BIN)/logpipe demo

up: install ## Start the local stack and wait until it is ready
	$(BIN)/logpipe up

down: $(INSTALLED) ## Stop the local stack; its data is kept (logpipe down --wipe deletes it)
	$(BIN)/logpipe down

status: $(INSTALLED) ## Show what runs, where, and whether it is ready
	$(BIN)/logpipe status

logs: $(INSTALLED) ## Show the end of all logs
	$(BIN)/logpipe logs

test: install lint types imports ## Lint, types, imports, then all tests on real components (as CI: WORKERS=2 OPTIONS=--no-skips)
	$(BIN)/python -m pytest -m "not long" $(if $(WORKERS),-n $(WORKERS) --no-loadscope-reorder) $(OPTIONS) $(TESTS)
	@echo "Not run: make test-faults (every fault, an hour and a half), make test-airflow (the DAGs, in an environment of their own), make test-kube (on a one-node Kubernetes)"

test-faults: install ## Every fault with three seeds, outages of a minute, six times ten minutes of chaos (1.5 hours)
	$(BIN)/python -m pytest --seeds 3 tests/e2e

test-airflow: $(AIRFLOW)/.installed ## The DAGs, by a real Airflow (the first time: 150 packages)
	cd kubernetes/airflow && $(AIRFLOW)/bin/python -m pytest -c tests/pytest.ini -p no:cacheprovider tests

test-kube: install ## The overlay k3s on a one-node Kubernetes; KUBE_LAB names the folder of its scripts (kubernetes/tests/README.md)
	$(BIN)/python -m pytest -c kubernetes/tests/pytest.ini kubernetes/tests

# Airflow pins its packages so tightly that it cannot share .venv.
$(AIRFLOW)/.installed: kubernetes/airflow/requirements.txt | $(INSTALLED)
	test -x $(AIRFLOW)/bin/python || $(PYTHON) -m venv --without-pip $(AIRFLOW)
	$(BIN)/uv pip sync --quiet --python $(AIRFLOW)/bin/python --require-hashes $<
	touch $@

lint: $(INSTALLED) ## ruff, and its formatter's check
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED) ## mypy --strict
	$(BIN)/mypy

imports: $(INSTALLED) ## Which room may import which (import-linter)
	$(BIN)/lint-imports

format: $(INSTALLED) ## Format the code, fix what ruff can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: install ## Measure the figures of docs/benchmarks
	$(BIN)/logpipe bench figures

bench-smoke: install ## Every part of the benchmark harness, on a stack of its own: three minutes
	$(BIN)/logpipe bench run smoke --fresh-stack

bench-read: install ## Only: the same questions to every store and engine, before and after compaction
	$(BIN)/logpipe bench figures --only read

bench-growth: install ## Only: starts, queries and checks with a year of history, planted; takes 32 GB of disk
	$(BIN)/logpipe bench figures --only growth

bench-traffic: install ## Only: the dashboard of requests by every store, with 10,000 to a million footprints
	$(BIN)/logpipe bench figures --only footprints

bench-footprints: $(INSTALLED) ## What the middleware for footprints adds to a request, in-process and over HTTP by k6 (KAFKA=host:port: to a real one as well)
	$(BIN)/python footprints/bench.py $(if $(KAFKA),--kafka $(KAFKA))
	$(BIN)/python footprints/bench_http.py $(if $(KAFKA),--kafka $(KAFKA))

dashboards: $(INSTALLED) ## Write the JSON of Grafana's dashboards again from kubernetes/monitoring/dashboards
	$(BIN)/python -m kubernetes.monitoring.dashboards

images: ## Build the images for Kubernetes, and load them into k3s (TO=folder: write them to files as well)
	TO="$(TO)" kubernetes/images/build.sh

secrets: ## Write random passwords for Kubernetes to kubernetes/secrets/logpipe.env; what is there is kept
	@$(PYTHON) kubernetes/secrets/generate.py

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock: $(INSTALLED) ## Compile requirements/*.txt again from pyproject.toml
	$(COMPILE) requirements/bootstrap.in --output-file requirements/bootstrap.txt
	$(COMPILE) pyproject.toml --all-extras --output-file requirements/lock.txt \
		--constraint requirements/bootstrap.txt --build-constraint requirements/bootstrap.txt
	$(COMPILE) kubernetes/airflow/requirements.in --output-file kubernetes/airflow/requirements.txt

clean: ## Delete .venv and all caches; the stack's data stays (logpipe down --wipe deletes it)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info footprints/*.egg-info
	find services spark_jobs footprints tests -name __pycache__ -type d -prune -exec rm -rf {} +
