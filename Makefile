# Two commands on a fresh machine with Python 3.10+:   make demo   and   make test
#
# A plain `pip install torch` on Linux fetches several GB of CUDA libraries. On a machine without
# an NVIDIA GPU, the CPU build is 10 times smaller:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The version is the one that CI tests. Another:   make demo TORCH="torch>=2.1"

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
GPU_ARGS ?=
WORKERS ?= auto

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-all lint types gpu-check install install-test clean

demo: install
	$(BIN)/resalign demo $(DEMO_ARGS)

test: install-test lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not gpu" $(PYTEST_ARGS)

test-all: install-test lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not gpu" $(PYTEST_ARGS)

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-test
	$(PIP) install "pyright[nodejs]>=1.1.390"
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

# Everything that only a GPU can answer; a rehearsal:  make gpu-check GPU_ARGS="--device cpu --small"
gpu-check: install-test
	$(BIN)/python benchmarks/gpu.py $(GPU_ARGS)

install: $(VENV)/.installed

install-test: $(VENV)/.installed-test

# torch first and by itself, so that nothing else decides which build comes
$(VENV)/.torch:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed: make PYTHON=python3.12 demo')"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),) "$(TORCH)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) install -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.torch pyproject.toml
	$(PIP) install -e ".[test]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
