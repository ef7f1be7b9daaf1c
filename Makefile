# `make demo` and `make test` set up everything they need in .venv and re-use it while it is current.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/*)
STAMP := $(VENV)/.ftrt-stamp
# where `make bench` leaves its JSON lines
RESULTS ?= runs/benchmarks
# What the installed tree depends on beside the Python files, which are installed in place.
SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -name '*.cpp' -o -name '*.h') \
           $(wildcard plugins/*/pyproject.toml)

.PHONY: setup demo test lint bench clean

setup: $(STAMP)

# torch first and by its pinned version, so that nothing else pulls another build of it; then everything without
# build isolation, because an isolated build would fetch a second torch for its headers.
$(STAMP): $(SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools wheel pybind11 ninja
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev,gguf]' \
	  $(foreach plugin,$(PLUGINS),-e ./$(plugin))
	@touch $@

demo: setup
	$(BIN)/python recipes/demo.py

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The `bench` extra: peers to compare with, under the pinned versions. torch is pinned there too, so it stays as it is.
bench: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt bitsandbytes torchao
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/cpu/ceilings.py --json $(RESULTS)/ceilings.jsonl
	$(BIN)/python benchmarks/cpu/linears.py --json $(RESULTS)/linears.jsonl
	$(BIN)/python benchmarks/cpu/decoder_layer.py --json $(RESULTS)/decoder_layer.jsonl
	$(BIN)/python benchmarks/cpu/end_to_end.py --json $(RESULTS)/end_to_end.jsonl
	$(BIN)/python benchmarks/cpu/accuracy.py --json $(RESULTS)/accuracy.jsonl

clean:
	rm -rf $(VENV) build dist *.egg-info plugins/*/*.egg-info plugins/*/src/*.egg-info ftrt/*.so .mypy_cache .ruff_cache
