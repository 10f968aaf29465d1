PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test lint clean

demo: $(STAMP)
	$(BIN)/msfusion compare demo --out runs/demo

test: lint
	$(BIN)/pytest -m "not network"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[report,hf,dev]"
	touch $@

clean:
	rm -rf .venv runs
