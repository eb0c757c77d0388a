# Two commands are all a newcomer needs: `make demo` and `make test`. Both set up the virtual environment first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO_RUN ?= runs/demo

.PHONY: help demo test test-slow test-faults check format bench bench-banking77 study bench-gpu test-gpu model clean

help: ## show the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Luthier needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[parquet,serve,language,dev]'
	@touch $@

model: $(STAMP) ## obtain the default model (once, into the user's cache)
	$(BIN)/luthier models pull smollm2-135m

demo: model ## the whole job on the example data, <= 10 minutes on 2 cores
	$(BIN)/luthier run --config examples/quickstart.yaml --run-dir $(DEMO_RUN)

test: model ## the test suite, <= 20 minutes on 2 cores
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m "not slow" -n 2 --dist loadfile

test-gpu: $(STAMP) ## the tests that need an NVIDIA GPU (and a CUDA build of torch in the environment)
	$(BIN)/python -m pytest tests/gpu --timeout 1200

test-slow: model ## the slow tier: 2,000-run coverage simulations, long fuzzing
	$(BIN)/python -m pytest tests -m slow --timeout 3600

test-faults: model ## the fault matrix with its larger counts (200 kills, 300 damages, ranks), about 30 minutes
	OMP_NUM_THREADS=1 LUTHIER_LARGE=1 $(BIN)/python -m pytest tests/fault tests/e2e/test_parallel.py --timeout 3600

check: $(STAMP) ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(STAMP) ## format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-banking77: model ## the reference table on banking77 (needs ../shared/data), about 30 minutes
	$(BIN)/python benchmarks/banking77.py

study: model ## the verdict on real tasks, resumable, within an hour (needs ../shared/data)
	$(BIN)/python benchmarks/study.py

bench: model ## against peers, interleaved (needs ../shared/data, ../shared/bench and PEER_PYTHON, see benchmarks/README.md)
	$(BIN)/python benchmarks/same_order.py
	$(BIN)/python benchmarks/peers.py

bench-gpu: $(STAMP) ## on an NVIDIA GPU: 1B and 8B shapes, against peers where PEER_PYTHON names their environment
	$(BIN)/python benchmarks/gpu.py

clean: ## remove the virtual environment and the demo run
	rm -rf $(VENV) $(DEMO_RUN)
