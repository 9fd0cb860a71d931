# setup: an environment in .venv; test: lint, types, tests; demo: the product end to end.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup test lint types pytest kernel-grid gpu gpu-sanitize gpu-session demo clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

test: lint types pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	MYPYPATH=.types $(BIN)/mypy -p dycoke_trt

# One process per core, one thread each: the tensors are small.
pytest: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

# Every kernel for every target, dtype and block size: minutes, so not part of `test`.
kernel-grid: setup
	DYCOKE_KERNEL_GRID=1 $(BIN)/pytest -n auto tests/kernels/test_aot.py

# On a machine with a GPU: the kernels and the device backend, without and with memory checks.
gpu: setup
	$(BIN)/pytest -m gpu tests/kernels/device tests/runtime/device tests/bench

# The same and the benchmark on a lent machine, without setup: bench/gpu_session.sh says what it needs.
gpu-session:
	bench/gpu_session.sh build/gpu-session

gpu-sanitize: setup
	compute-sanitizer --tool memcheck --error-exitcode 1 $(BIN)/python -m pytest -m gpu tests/kernels/device
	compute-sanitizer --tool racecheck --error-exitcode 1 $(BIN)/python -m pytest -m gpu tests/kernels/device

demo: setup
	$(BIN)/dycoke demo -o build/demo

clean:
	rm -rf $(VENV) build *.egg-info
