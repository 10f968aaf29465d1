PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install -q --no-compile -c constraints.txt

# Modules are compiled where they are first imported, not all 20,000 of them by pip.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test deployed lint docs clean

# Ten participants train one model on handwritten digits; the report is runs/demo/report.html.
demo: .venv/package
	rm -rf runs/demo
	$(BIN)/msfusion compare demo --out runs/demo

# Processes that wait for each other, and forks, apart from what takes all of the cores.
test: lint
	$(BIN)/pytest -n auto --dist loadgroup -m "not network and not deployed and not processes"
	$(BIN)/pytest -n 3 -m "processes and not deployed" $$(grep -rl --include='test_*.py' mark.processes tests)

# Real peers and SuperNodes, killed and frozen at every point of a round; most of it is waiting.
deployed: .venv/dev
	$(BIN)/pytest -n 4 -m deployed

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
