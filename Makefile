PYTHON ?= python3
SCALE ?= paper
DATA ?=
WORKERS ?=
BIN := .venv/bin
READY := .venv/.ready

SETTINGS = scale=$(SCALE) $(if $(DATA),'paths.data=$(DATA)')
SWEEP = $(BIN)/python scripts/sweep.py $(if $(WORKERS),--workers $(WORKERS))
REPORT = $(BIN)/python scripts/report.py
# What there is gets written even where runs have failed (exit status 1); not after Ctrl-C.
TRAIN_AND_WRITE = @$(SWEEP) $@ $(SETTINGS); status=$$?; [ $$status -le 1 ] || exit $$status; \
	$(REPORT) $@ $(SETTINGS) && exit $$status

.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z][a-z0-9_%-]*:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo 'SCALE=paper, cpu or smoke; WORKERS=runs at a time (GPUs, or cores); DATA=folder with the images'

setup: $(READY)  ## Make .venv with the project in it; the other targets do this by themselves

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar off -e '.[experiments,dev]'
	@touch $@

demo: $(READY)  ## SGD, SAM, RST and G-RST on handwritten digits with wrong labels: table and figure in minutes
	$(SWEEP) demo
	$(REPORT) demo

table%: $(READY) FORCE  ## A table of the paper, as in make table03 SCALE=smoke: train the runs that are missing, then write it
	$(TRAIN_AND_WRITE)

figure%: $(READY) FORCE  ## A figure of the paper
	$(TRAIN_AND_WRITE)

tables: $(READY)  ## All tables, in one sweep
	$(TRAIN_AND_WRITE)

figures: $(READY)  ## All figures, in one sweep
	$(TRAIN_AND_WRITE)

report: $(READY)  ## All tables and figures from the runs that are done, and a page of them
	$(REPORT) --page $(SETTINGS)

test: $(READY)  ## The tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(or $(WORKERS),auto) -m 'not slow and not faults and not slurm'

test-slow: $(READY)  ## The tests that take minutes: full-size networks, torch.compile
	$(BIN)/python -m pytest -m slow

test-faults: $(READY)  ## Kills at random moments, full disks, and wrong input by the hundred
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults -s tests/faults

test-slurm: $(READY)  ## Runs as jobs of a real Slurm of one node: as root, after apt-get install slurm-wlm munge
	$(BIN)/python -m pytest -m slurm tests/slurm

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## Cost of a sharp step and of the variants, time over p, speed of the loader; also as results/bench.json
	$(BIN)/python scripts/bench.py

FORCE:

.PHONY: help setup demo tables figures report test test-slow test-faults test-slurm lint bench FORCE
