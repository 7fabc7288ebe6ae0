PYTHON ?= python3
WORKERS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z][a-z0-9_-]*:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY)  ## Make .venv with the project in it; the other targets do this by themselves

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar off -e '.[experiments,dev]'
	@touch $@

demo: $(READY)  ## SGD, SAM, RST and G-RST on handwritten digits with wrong labels: table and figure in minutes
	$(BIN)/python scripts/sweep.py demo --workers $(WORKERS)
	$(BIN)/python scripts/report.py demo

test: $(READY)  ## The tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m 'not slow'

test-slow: $(READY)  ## The tests that take minutes: full-size networks, torch.compile
	$(BIN)/python -m pytest -m slow

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## Cost of a sharp step and of the variants, time over p, speed of the loader; also as results/bench.json
	$(BIN)/python scripts/bench.py

.PHONY: help setup demo test test-slow lint bench
