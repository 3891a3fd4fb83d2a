# Needs GNU make, Python 3.11 to 3.13 and the package registries, nothing else.

PYTHON ?= python3
ARGS   ?=
BIN    := .venv/bin
STAMP  := .venv/.installed
# test files at a time, as tests wait more than they compute; 0 is one after the other, in this process
AT_ONCE ?= 2
LOCK   := $(BIN)/uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --no-annotate \
          --custom-compile-command "make lock" $(ARGS)

# without bytecode every process that imports torch starts three times slower
unexport PYTHONDONTWRITEBYTECODE
# a package of the caller's must not shadow ours
unexport PYTHONPATH

.DELETE_ON_ERROR:
.PHONY: help venv demo lint types test test-all bench lock clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

venv: $(STAMP) ## make .venv with the exact versions of requirements/cpu.lock

$(STAMP): requirements/cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	    sys.exit(None if (3, 11) <= v < (3, 14) else f"raylift needs Python 3.11 to 3.13, $(PYTHON) is {v[0]}.{v[1]}: make venv PYTHON=python3.11")'
	@echo "Installing into .venv (a few minutes the first time) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --no-compile -r requirements/cpu.lock
	@$(BIN)/python -m pip install -qq --no-deps -e .
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib >/dev/null || true # some packages ship templates that do not parse
	@touch $@

demo: $(STAMP) ## train a network on real digits, and show what came out and where
	@run="digits-$$(date -u +%y%m%d%H%M%S)"; \
	    $(BIN)/raylift run examples/digits.yaml --id "$$run" && echo && \
	    $(BIN)/raylift status "runs/$$run" && \
	    printf '\nWhat it left in runs/%s:\n' "$$run" && (cd "runs/$$run" && find . -type f | sort | sed 's/^./ /') && \
	    printf '\nGo on with:\n  %s export runs/%s model\n  %s report runs/%s\n' $(BIN)/raylift "$$run" $(BIN)/raylift "$$run"

types: $(STAMP) ## check the types
	$(BIN)/python -m mypy

lint: types ## check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

test: lint ## lint, types, and the tests that take minutes (ARGS="-k name" chooses)
	$(BIN)/python -m pytest -n $(AT_ONCE) --dist loadfile --durations=20 -m "not slow" $(ARGS)

test-all: lint ## all tests: also those that need root, a browser or an hour
	$(BIN)/python -m tests.lanes --durations=20 $(ARGS)

bench: $(STAMP) ## list the benchmarks; make bench NAME=cnn runs one
ifdef NAME
	$(BIN)/python -m benchmarks.$(NAME) $(ARGS)
else
	@for file in benchmarks/*/__main__.py; do \
	    [ ! -e "$$file" ] || echo "  make bench NAME=$$(basename "$$(dirname "$$file")")"; done
endif

lock: $(STAMP) ## resolve the lock files again (ARGS=--upgrade: to the newest versions)
	@$(BIN)/python -m pip install -qq "uv>=0.13"
	@$(LOCK) --extra all --extra dev -c requirements/constraints.txt --excludes requirements/cuda-only.txt \
	    -o requirements/cpu.lock >/dev/null
	@$(LOCK) --extra all -c requirements/cpu.lock -o requirements/cuda.lock >/dev/null
	@git diff --stat -- requirements

clean: ## remove .venv and what tools left behind; runs stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
