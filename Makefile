# setup: an environment in .venv; test: lint, types, tests; check: a part of it, for what changed;
# demo: the product end to end.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NUMPY2 := $(VENV)/numpy2
# One thread per process: the tensors are small.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest
WORKERS := -n auto --dist loadfile # one per core; tests/units.py says what each takes

define CHECK_PYTHON
import sys
from importlib.util import find_spec
if sys.version_info < (3, 11):
    sys.exit(f"Python {sys.version.split()[0]} is too old: make PYTHON=python3.11 (or newer)")
if find_spec("ensurepip") is None:
    sys.exit(f"{sys.executable} cannot make environments; on Debian: apt-get install python3-venv")
endef
export CHECK_PYTHON

.PHONY: setup test check lint types numpy2 pytest kernel-grid gpu gpu-sanitize gpu-session plugin-release demo clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "$$CHECK_PYTHON"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

# Tests wait for servers a third of their time: then types and numpy 2's part have the cores.
test: lint $(NUMPY2)/.installed
	$(MAKE) --no-print-directory --jobs=3 NICE="nice -n 19" types numpy2 pytest

check: lint types
	$(PYTEST) $(WORKERS) $$($(BIN)/python tests/changed.py)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	MYPYPATH=.types $(NICE) $(BIN)/mypy -p dycoke_trt

# Only `server` needs numpy 1: numpy 2 in front of the environment, for the tests of what numpy computes
# and for the client of test_client.py. core/ has none (tests/test_architecture.py). What a video may
# take of the processor (test_line.py) is not asked here, where others have it first.
NUMPY2_VIDEO := $(filter-out %/test_line.py,$(wildcard tests/runtime/video/test_*.py))
numpy2: $(NUMPY2)/.installed
	PYTHONPATH="$(CURDIR)/$(NUMPY2)" $(NICE) env $(PYTEST) \
		tests/core/test_ttm.py tests/core/test_state.py tests/bundle/test_safetensors_file.py \
		$(NUMPY2_VIDEO) tests/runtime/test_pipeline.py tests/runtime/test_resize.py \
		tests/runtime/test_stop_words.py

$(NUMPY2)/.installed: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --upgrade --no-deps \
		--no-warn-conflicts --target $(NUMPY2) numpy==2.4.6
	touch $@

pytest: setup
	$(PYTEST) $(WORKERS)

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

# The plugin library as a release file, with its description; needs TensorRT's headers and the wheel
# ziglang: make plugin-release TENSORRT_INCLUDE=TENSORRT/include
plugin-release: setup
	$(BIN)/dycoke plugin build --release -o build/plugin-release --tensorrt-include $(TENSORRT_INCLUDE)

demo: setup
	$(BIN)/dycoke demo -o build/demo

clean:
	rm -rf $(VENV) build *.egg-info
