# `make demo`: install into .venv and make a picture, offline but for the installation.
# `make test`: the default test suite. `make test-slow`: full-size files. `make check`: lint, types, layers.
# `make test-resume`: kill a training run at 200 random moments, with and without workers, and compare the bytes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,test,dev]'
	@touch $@

.PHONY: demo test test-slow test-resume check
demo: $(VENV)/.installed
	$(BIN)/langevin generate "a red apple" --output apple.png
	@echo "the picture: $(CURDIR)/apple.png"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

test-resume: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow tests/training/test_killed.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
