# Everything runs in .venv, made from Python 3.11 or newer and pip alone.
PYTHON ?= python3
SEEDS ?= 1 2 3
SCHEDULE ?= cpu
ROWS ?=
SETTINGS ?=
RUN := .venv/bin/python
COMPILE := $(RUN) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--upgrade --no-header --no-emit-index-url --no-emit-find-links
DEV := requirements-export.txt requirements-sweeps.txt requirements-trackers.txt requirements-timm.txt requirements-dev.txt

.PHONY: help demo test test-fast table bench setup lint format lock
.DEFAULT_GOAL := help

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

demo: .venv/.installed ## Train GoogleNet on handwritten digits, dense, then sparse (two minutes, no download)
	$(RUN) train.py experiment=demo without_using_gate=true skip_finished=true
	$(RUN) train.py experiment=demo

test: .venv/.installed-dev ## Run all tests
	$(RUN) -m pytest

test-fast: .venv/.installed-dev ## Run those that are not slow (about two minutes)
	$(RUN) -m pytest -m "not slow"

table: .venv/.installed ## Train the GoogleNet rows of docs/results.md (SCHEDULE=cpu: hours on two cores; full: on a GPU)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-benchmarks.txt
	$(RUN) -m experiments.table $(SCHEDULE) $(ROWS) --seeds $(SEEDS) -- $(SETTINGS)
	$(RUN) -m experiments.speeds outputs/table/$(SCHEDULE)
	$(RUN) report.py runs=outputs/table/$(SCHEDULE) out=outputs/table/report
	cp outputs/table/report/report.csv docs/results/googlenet_$(SCHEDULE).csv
	$(RUN) report.py results=docs/results

bench: .venv/.installed ## Measure speed on this machine (about ten minutes), see docs/performance.md
	$(RUN) -m benchmarks

setup: .venv/.installed ## Make .venv with the tested versions

lint: .venv/.installed-dev ## Check style
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: .venv/.installed-dev ## Apply style
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

lock: .venv/.installed-dev ## Resolve the tested versions anew, for every platform
	$(RUN) -m pip install --quiet uv
	$(COMPILE) -o requirements.lock requirements.txt
	$(COMPILE) -c requirements.lock -o requirements-dev.lock requirements.txt $(DEV)

.venv/.installed: requirements.lock
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed; make PYTHON=python3.12 …")'
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

.venv/.installed-dev: requirements-dev.lock .venv/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@
