# Two commands do everything on a fresh machine with Python 3.11+, git and make: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
JOBS   ?= 2

.PHONY: demo test test-all lint bench clean

demo: $(READY)  ## build the example: an adapter and a grid of samples
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/doit emoji-3d

test: $(READY) lint  ## everything that runs in CI
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not campaign"

test-all: $(READY) lint  ## with the slow campaigns
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## speed and memory, as ratios
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m benchmarks

$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV): about a gigabyte, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .sdbuild build dist
