# Two commands for newcomers: `make up` and `make test`. Everything lands in .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SPEC   ?=

.PHONY: up test lint types layers unit format bench clean

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

format: $(VENV)/.dev       ## rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev        ## one benchmark: make bench NAME=data_plane
	$(BIN)/python -m benchmarks.$(NAME)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.base: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
