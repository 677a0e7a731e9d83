# The targets that a newcomer needs; `make` lists them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lock clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/'

$(BIN)/cdp-ml: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

demo: $(BIN)/cdp-ml ## make the demo data, run the whole platform on it, ask the API for a score
	@test -d data/demo || $(BIN)/cdp-ml demo-data
	$(BIN)/cdp-ml refresh
	$(BIN)/cdp-ml evaluate
	$(BIN)/cdp-ml serve --check
	@echo
	@echo "Where to look next:"
	@echo "  $(BIN)/cdp-ml status    what is published"
	@echo "  $(BIN)/cdp-ml serve     the API and its page on http://127.0.0.1:3000"
	@echo "  $(BIN)/cdp-ml ui        experiments and models on http://127.0.0.1:5000"
	@echo "  notebooks/              the same from Python"

test: $(BIN)/cdp-ml ## run all checks and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

lock: ## resolve the dependencies anew into requirements.lock
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --output-file requirements.lock

clean: ## remove the demo's data and results
	rm -rf data/demo .cdp
