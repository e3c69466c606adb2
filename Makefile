# Two commands on a fresh machine with Python >= 3.11: `make demo` and `make test`.
# Each creates .venv when it is missing; a second run installs nothing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-all lint format docs release clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "gptoss-tune needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + "; pass PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/gptoss-tune demo

# One thread per worker: two workers with two spinning threads each are ten times slower. A file is
# one worker's, which makes what its tests share once; tests/conftest.py lets the longest go first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# Random inputs are the same ones in every run; plain `pytest tests/recipe/test_fuzz.py` draws new ones.
PYTEST += --hypothesis-profile=ci

test: $(STAMP) lint
	$(PYTEST) -m "not slow"

# lm-eval and inspect-ai, which hold other versions than we do: their commands are run in a test.
BESIDE := .venv-benchmarks
$(BESIDE)/.installed:
	$(PYTHON) -m venv $(BESIDE)
	$(BESIDE)/bin/python -m pip install --quiet "lm-eval[api]==0.4.13" "inspect-ai==0.3.285" openai
	@touch $@

# Also the launches of several processes, kills and whole jobs, of which each takes long; CI runs it.
test-all: $(STAMP) $(BESIDE)/.installed lint
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --warnings

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages that are made from the program, then the site in site/: open site/index.html.
docs: $(STAMP)
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site/index.html"

# Checks, builds and tags the version of the package; pushes nothing.
release: $(STAMP)
	PYTHON=$(BIN)/python bash docs/release.sh

clean:
	rm -rf site .venv $(BESIDE) .pytest_cache .ruff_cache build dist
