PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install -q -c constraints.txt
# Two per core: tests of real processes mostly wait.
WORKERS := $(shell expr 2 \* $$(getconf _NPROCESSORS_ONLN))

.PHONY: demo test faults lint docs clean

# Ten participants train one model on handwritten digits; the report is runs/demo/report.html.
demo: .venv/package
	rm -rf runs/demo
	$(BIN)/msfusion compare demo --out runs/demo

test: lint
	$(BIN)/pytest -n $(WORKERS) -m "not network and not faults"

# Real peers and SuperNodes killed and frozen at every point of a round.
faults: .venv/dev
	$(BIN)/pytest -n $(WORKERS) -m faults

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tables of docs/settings.md, from the code.
docs: .venv/package
	sed -i '/^## Settings$$/,$$d' docs/settings.md
	$(BIN)/msfusion settings >> docs/settings.md

.venv/package: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e ".[report]"
	touch $@

.venv/dev: .venv/package
	$(PIP) -e ".[report,dev]"
	touch $@

clean:
	rm -rf .venv runs
