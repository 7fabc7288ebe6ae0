PYTHON ?= python3
SCALE ?= paper
DATA ?=
WORKERS ?=
YES ?=
PARTS ?=
BIN := .venv/bin
READY := .venv/.ready
MAKEFLAGS += --no-builtin-rules

# A variable in small letters would have no effect, and a small scale that is asked for so would be the paper's.
given = $(findstring command,$(origin $(1)))
$(foreach name,scale:SCALE data:DATA workers:WORKERS yes:YES parts:PARTS,$(if $(call given,$(firstword $(subst :, ,$(name)))),\
	$(error write $(lastword $(subst :, ,$(name)))= in capital letters, as in make table03 SCALE=smoke)))

# These are not in a recipe, so that they are said before anything is installed.
SCALES = $(sort $(basename $(notdir $(wildcard configs/scale/*.yaml))))
$(if $(filter-out $(SCALES),$(SCALE)),$(error there is no SCALE=$(SCALE): write one of $(SCALES)))
$(if $(filter demo,$(MAKECMDGOALS)),$(if $(filter-out paper,$(SCALE))$(DATA),\
	$(error the demo has one scale and its own images: leave SCALE and DATA out)))

SETTINGS = scale=$(SCALE) $(if $(DATA),'paths.data="$(DATA)"')
SWEEP = $(BIN)/python scripts/sweep.py --report $(if $(WORKERS),--workers $(WORKERS)) $(if $(YES),--yes)
TRAIN_AND_WRITE = @$(SWEEP) $@ $(SETTINGS)
TARGETS := help setup demo tables figures claims report test test-slow test-faults test-slurm test-integrations docs lint bench
NAMES = $(basename $(notdir $(wildcard configs/tables/*.yaml)))

.DEFAULT_GOAL := help

help:  ## List the targets
	@sed -E 's/^\$$\(filter .*\)\): //' $(MAKEFILE_LIST) | grep -E '^[a-z][a-z0-9_%-]*:.*##' | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo 'SCALE=paper, gpu, cpu, digits or smoke; WORKERS=runs at a time (GPUs, or cores); DATA=folder with the images; YES=1 to start what takes days'

setup: $(READY)  ## Make .venv with the project in it; the other targets do this by themselves

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar off -e '.[experiments,dev]'
	@touch $@

demo: $(READY)  ## SGD, SAM, RST and G-RST on handwritten digits with wrong labels: table and figure in minutes
	@$(SWEEP) demo

$(filter table%,$(NAMES)): table%: $(READY) FORCE  ## A table of the paper, as in make table03 SCALE=smoke: train the runs that are missing, then write it
	$(TRAIN_AND_WRITE)

$(filter figure%,$(NAMES)): figure%: $(READY) FORCE  ## A figure of the paper
	$(TRAIN_AND_WRITE)

tables: $(READY)  ## All tables, in one sweep
	$(TRAIN_AND_WRITE)

figures: $(READY)  ## All figures, in one sweep
	$(TRAIN_AND_WRITE)

claims: $(READY)  ## The verdicts on the paper's claims: train the runs that are missing, then write docs/claims.md
	$(TRAIN_AND_WRITE)

report: $(READY)  ## All tables and figures from the runs that are done, and a page of them
	@$(BIN)/python scripts/report.py --page $(SETTINGS)

test: $(READY)  ## The tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(or $(WORKERS),auto) --dist loadfile -m 'not slow and not faults and not slurm and not integrations'

test-slow: $(READY)  ## The tests that take minutes: full-size networks, torch.compile
	$(BIN)/python -m pytest -m slow

test-faults: $(READY)  ## Kills at random moments, full disks, and wrong input by the hundred
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults -s tests/faults

test-integrations: $(READY)  ## docs/integrations.md: trainers, adapters, other optimizers, export; installs them into .venv
	$(BIN)/python -m pip install --quiet --progress-bar off -e '.[integrations]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(or $(WORKERS),auto) --dist loadgroup -m integrations tests/integrations

docs: $(READY)  ## A site of the pages and the docstrings, in build/docs; installs Sphinx into .venv
	$(BIN)/python -m pip install --quiet --progress-bar off -e '.[docs]'
	rm -rf build/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs . build/docs
	@echo 'The site is build/docs/index.html.'

test-slurm: $(READY)  ## Runs as jobs of a real Slurm of one node: as root, after apt-get install slurm-wlm munge
	$(BIN)/python -m pytest -m slurm tests/slurm

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## What the method, the loader and whole runs cost beside what people use; PARTS="vectors loader" for some
	@$(BIN)/python scripts/bench.py $(PARTS)

FORCE:

.DEFAULT:
	@$(PYTHON) -c 'import difflib, re, sys; target, *known = sys.argv[1:]; \
	near = difflib.get_close_matches(re.sub(r"(?<!\d)(\d)$$", r"0\1", target), known, 1, 0.8); \
	sys.exit(f"there is no target {target}: " + (f"did you mean {near[0]}?" if near else "make help lists all."))' \
	$@ $(NAMES) $(TARGETS)

.PHONY: $(TARGETS) FORCE
