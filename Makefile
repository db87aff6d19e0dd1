# Nothing is needed but make and Python 3.11; `make demo` is the whole start.

PYTHON ?= $(shell for p in python3.11 python3 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
  2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.locked
# More arguments for pytest, fuzzing, the benchmark or pip-compile, such as
# ARGS='-k packing', ARGS=--inputs=1000, ARGS=--kills=9 or ARGS=--runs=1.
ARGS ?=

.PHONY: help venv demo test test-fast check fuzz faults bench bench-sampling \
  bench-curves bench-tables parity lock tpu

help:  ## Lists these targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(STAMP)  ## Makes .venv with the locked versions.

$(STAMP): requirements/lock.txt requirements/torch.txt requirements/tokenizers.txt
	@test -n '$(PYTHON)' || { \
	  echo 'No Python 3.11 found: give its path, make PYTHON=...' >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes \
	  -r requirements/lock.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes \
	  --no-deps -r requirements/torch.txt 2>$(VENV)/torch.log || \
	  echo 'PyTorch (CPU build) could not be had: tests of parity with it' \
	    'will be skipped. The reason stands in $(VENV)/torch.log.'
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes \
	  --no-deps -r requirements/tokenizers.txt 2>$(VENV)/tokenizers.log || \
	  echo 'mistral-common and llama-models could not be had: tests with their' \
	    'tables will be skipped. The reason: $(VENV)/tokenizers.log.'
	$(BIN)/pip install -qq --disable-pip-version-check --no-index \
	  --no-deps --no-build-isolation --editable .
	@touch $@

demo: venv  ## Runs the method on a small synthetic world, on the CPU.
	$(BIN)/python -m tract_jax.main --config=configs/demo.py

test: venv  ## Runs every test: unit, slow and multi-process.
	$(BIN)/python -m pytest -n 2 --dist=worksteal $(ARGS)

test-fast: venv  ## Runs the unit tests alone.
	$(BIN)/python -m pytest -n 2 --dist=worksteal \
	  -m 'not slow and not multiprocess' $(ARGS)

check: venv  ## Checks format, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fuzz: venv  ## Tries 100,000 odd inputs on every reader (ARGS=--inputs=N).
	$(BIN)/python -m tests.fuzz $(ARGS)

bench: venv  ## Measures training, prediction and files beside PyTorch's.
	$(BIN)/python -m benchmarks.bench $(ARGS)
	$(BIN)/python -m benchmarks.tables

bench-tables: venv  ## Writes the tables of docs/benchmarks.md anew.
	$(BIN)/python -m benchmarks.tables

bench-sampling: venv  ## Measures sampling beside PyTorch's (docs/benchmarks.md).
	$(BIN)/python -m benchmarks.sampling $(ARGS)
	$(BIN)/python -m benchmarks.tables

bench-curves: venv  ## Measures how cost grows with sizes (docs/benchmarks.md).
	$(BIN)/python -m benchmarks.curves $(ARGS)
	$(BIN)/python -m benchmarks.tables

parity: venv  ## Trains beside PyTorch, and compares (docs/benchmarks.md).
	$(BIN)/python -m benchmarks.parity $(ARGS)

faults: venv  ## Kills small runs 50 times at random; their ends must not differ.
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.faults.random_kills $(ARGS)

tpu: venv  ## Gets the TPU's compiler, for --task=plan (200 MB).
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes \
	  --no-deps --upgrade --target $(VENV)/tpu -r requirements/tpu.txt \
	  2>$(VENV)/tpu.log || \
	  echo 'libtpu could not be had: --task=plan does not work, and its test' \
	    'will be skipped. The reason stands in $(VENV)/tpu.log.'

lock: venv  ## Pins what setup.py and requirements/lock.in ask for.
	CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/pip-compile --quiet \
	  --generate-hashes --allow-unsafe --strip-extras --extra test \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --no-emit-options --output-file requirements/lock.txt \
	  setup.py requirements/lock.in $(ARGS)
