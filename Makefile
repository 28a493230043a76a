# Everything a developer or a first user needs; each target sets up what it needs on a fresh Debian machine.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JOB ?= docs/examples/quickstart.yaml
CLUSTER := bash tests/cluster/cluster.sh
CHART := charts/galvatron-operator
UV := $(BIN)/uv
# For the image's Python and system; without the folders of wheels, whose builds have other hashes.
COMPILE := env -u UV_FIND_LINKS $(UV) pip compile --quiet --upgrade --generate-hashes --no-emit-index-url \
  --python-version 3.11 --python-platform linux --custom-compile-command "make lock"

.PHONY: help run test check format dashboards goldens reference bench bench-accuracy bench-runtime bench-resume bench-jobs cluster cluster-down images chart lock licences audit docs clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 16

run: $(INSTALLED) ## profile, plan and train docs/examples/quickstart.yaml on this machine (JOB=... for another)
	$(BIN)/galvatron run $(JOB)

test: $(INSTALLED) ## everything, the real cluster included
	bash tests/run.sh

check: $(INSTALLED) ## format, lint, types, import contracts and fast tests; under a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	@# Types beside tests: a core each.
	$(BIN)/mypy & types=$$!; tests=0; \
	  $(BIN)/pytest -q -m "not distributed and not gpu and not k8s and not helm and not slow" || tests=$$?; \
	  wait $$types; exit $$tests

dashboards: $(INSTALLED) ## write the Grafana dashboards of tests/charts/boards to the chart
	cd tests && ../$(BIN)/python -m charts.write_dashboards

docs: $(INSTALLED) ## make a site of README.md and docs in .build/site; a broken link fails it
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs -d .build/doctrees . .build/site
	cp .build/site/README.html .build/site/index.html

reference: $(INSTALLED) ## write the reference pages of docs from the CRD, the chart's values and the commands
	cd tests && for document in reference values commands; do ../$(BIN)/python -m architecture.$$document; done

format: $(INSTALLED) ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

bench-accuracy: $(INSTALLED) ## measure: 200 random plans of several models, predicted against measured
	cd tests && ../$(BIN)/python -m benchmarks.accuracy

bench-runtime: $(INSTALLED) ## measure: the runtime against DDP, FSDP2, DTensor and pipelining by hand, hybrid plans against single dimensions, start-up
	cd tests && ../$(BIN)/python -m benchmarks.native
	cd tests && ../$(BIN)/python -m benchmarks.hybrid
	cd tests && ../$(BIN)/python -m benchmarks.startup

bench-resume: $(INSTALLED) ## measure: checkpoints of all 44 strategies of 8 devices under all of them, bit for bit
	cd tests && ../$(BIN)/python -m benchmarks.resume

bench-jobs: $(INSTALLED) ## measure: a thousand jobs on the API server of `make cluster`, pods played (root)
	cd tests && ../$(BIN)/python -m benchmarks.jobs

bench: $(INSTALLED) ## measure: search times, the search against its oracle and the published ones
	cd tests && ../$(BIN)/python -m benchmarks.search
	cd tests && ../$(BIN)/python -m benchmarks.search --zero2
	cd tests && ../$(BIN)/python -m benchmarks.search --sweep
	cd tests && ../$(BIN)/python -m benchmarks.algorithms
	cd tests && ../$(BIN)/python -m benchmarks.oracle --instances 10000

cluster: $(INSTALLED) ## a real two-node Kubernetes with the operator and an example job, left running
	$(CLUSTER) up
	$(CLUSTER) images
	bash tests/cluster/demo.sh

cluster-down: ## remove that cluster and all it left
	$(CLUSTER) down

images: ## build both images with buildah (docker build --target ... works as well), and list their contents in .build/sbom
	$(CLUSTER) images

chart: ## copy the CRD into the chart
	cp crds/galvatronjobs.yaml $(CHART)/files/galvatronjobs.yaml

goldens: $(INSTALLED) ## write the chart's reviewed renderings anew, after a change of a template
	cd tests && ../$(BIN)/python -m charts.golden

lock: $(UV) ## write requirements-*.lock: the newest versions, with hashes, of all that goes into the images
	$(COMPILE) pyproject.toml --extra operator --output-file requirements-operator.lock
	$(COMPILE) pyproject.toml --extra runtime --output-file requirements-runtime.lock
	$(COMPILE) --group image-build --output-file requirements-build.lock

licences: $(UV) ## write docs/licences.md from the locks (downloads what they name, some gigabytes)
	mkdir -p .build/licences
	for image in operator runtime; do \
	  $(UV) tool run --python 3.11 --from 'pip>=25.1' pip install --dry-run --ignore-installed --no-deps --quiet \
	    --require-hashes --requirement requirements-$$image.lock --report .build/licences/$$image.json; \
	done
	cd tests && ../$(BIN)/python -m architecture.licences ../.build/licences

audit: $(UV) ## look for known vulnerabilities of what the locks hold (asks PyPI)
	for lock in requirements-*.lock; do \
	  $(UV) tool run 'pip-audit>=2.10' --strict --disable-pip --require-hashes --requirement $$lock; \
	done

clean: ## remove what was built and measured here
	rm -rf $(VENV) .cache .build .mypy_cache .ruff_cache .pytest_cache galvatron-runs

# The virtual environment; Debian ships venv apart from Python.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "galvatron needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "== installing python3-venv"; apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null; } \
	  || { echo "Python lacks venv: install python3-venv (as root: apt-get install python3-venv)" >&2; exit 1; }
	@echo "== installing galvatron and its dependencies into $(VENV) (first time: some minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[operator,runtime,dev,docs]'
	@touch $@

# Only the targets that renew or audit the locks need it.
$(UV): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check 'uv>=0.13'
