PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint smoke bench clean

# Everything a fresh machine needs: an environment of its own, the package and what the demo and the tests use.
$(VENV)/.installed: setup.cfg setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[lite,plots,test]'
	touch $@

# The whole method on drawn retinas, in ten minutes on two cores: see runs/demo/report.html.
demo: $(VENV)/.installed
	$(BIN)/keepfit-clip demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The demo in short, and its model used through the command line.
smoke: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" bash tests/smoke.sh runs/smoke

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/cpu_step.py
	$(BIN)/python benchmarks/draw.py
	$(BIN)/python benchmarks/data_loading.py
	$(BIN)/python benchmarks/shard_building.py
	$(BIN)/python benchmarks/many_shards.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
