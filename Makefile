# Every target sets up .venv by itself, so any of them may be the first thing that is typed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install docs demo test test-faults test-lowest lint bench

help:
	@echo "make install  a virtual environment with the package and the demo; then: source .venv/bin/activate"
	@echo "make demo   explain real photographs with real weights: a table, pictures, TensorBoard logs"
	@echo "make test   run every test but those of faults"
	@echo "make test-faults  kill, starve and signal real runs, for minutes"
	@echo "make test-lowest  every test with the lowest versions that pyproject.toml allows, in .venv-lowest"
	@echo "make lint   ruff, mypy --strict, the imports' floors and the documentation"
	@echo "make docs   the documentation as a site, in site/"
	@echo "make bench  measure beside the limit and other packages, and make docs/performance.md"

# A stamp per set of extras: installed again only when pyproject.toml changes.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[demo]"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[demo,captum,transformers,datasets,coco,peers,test,lint,docs]"
	@touch $@ $(VENV)/.demo

# Beside the others' requirements, for `make bench` alone.
$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]"
	@touch $@

install: $(VENV)/.demo
	@echo "installed: source .venv/bin/activate"

demo: $(VENV)/.demo
	$(BIN)/optcam compare --config demo --explainers OptiCAM ScoreCAM GradCAM GradCAMPlusPlus FakeCAM

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-faults: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults -n auto

# pip only takes the newest versions. What was right then may warn now, so warnings are no errors there.
$(VENV)-lowest/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct \
		-e ".[demo,captum,transformers,peers,test]"
	@touch $@

test-lowest: $(VENV)-lowest/.installed
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest -n auto -o filterwarnings=default

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict optcam_pl
	$(BIN)/lint-imports
	$(BIN)/python docs/make_architecture.py --check
	$(BIN)/python docs/make_metrics.py --check
	$(BIN)/python docs/make_reproduction.py --check
	$(MAKE) docs

# MkDocs' authors and those of its theme differ on version 2, and say so at every build.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --clean

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/run.py
