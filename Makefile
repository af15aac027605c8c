PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-long lint smoke docs check-docs bench wheel clean

# Everything a fresh machine needs: an environment of its own, the package and what the demo, tests and docs use.
$(VENV)/.installed: setup.cfg setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[lite,plots,test,docs]'
	touch $@

# The whole method on drawn retinas, in five to eight minutes on two idle cores: see runs/demo/report.html.
demo: $(VENV)/.installed
	$(BIN)/keepfit-clip demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Style, and the types of what people import.
lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What is published: dist/*.whl and dist/*.tar.gz, checked.
wheel: $(VENV)/.installed
	rm -rf dist build
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

# The demo in short, and its model used through the command line.
smoke: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" bash tests/smoke.sh runs/smoke

# The site, into runs/docs; a warning is an error.
docs: $(VENV)/.installed
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --builder html --doctree-dir runs/docs-cache docs runs/docs
	@echo "-> runs/docs/index.html"

# What takes many seconds each: programs of several processes, a browser with many visitors.
test-long: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long

# Every command and Python block of README and docs, in small.
check-docs: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow tests/test_docs.py

# All measurements; with SMALL=1 they only show that each of them runs.
ifdef SMALL
IMPORT_TIME = --runs 1
CPU_STEP = --steps 1 --rounds 1
DRAW = --count 24
DATA_LOADING = --sizes 224 --workers 1 --batches 4
SHARD_BUILDING = --images 24 --rows 100
MANY_SHARDS = --shards 400
endif

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/import_time.py $(IMPORT_TIME)
	$(BIN)/python benchmarks/cpu_step.py $(CPU_STEP)
	$(BIN)/python benchmarks/draw.py $(DRAW)
	$(BIN)/python benchmarks/data_loading.py $(DATA_LOADING)
	$(BIN)/python benchmarks/shard_building.py $(SHARD_BUILDING)
	$(BIN)/python benchmarks/many_shards.py $(MANY_SHARDS)
	$(BIN)/python benchmarks/identifiers.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
