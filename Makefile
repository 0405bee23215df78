# `make demo` and `make test` work on a fresh machine: they make .venv and install into it what is pinned in
# constraints.txt. In an environment of your own:  make demo PYTHON=python
BASE_PYTHON ?= python3
ifdef PYTHON
INSTALLED :=
else
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
endif

.PHONY: install demo test lint types check

install: $(INSTALLED)

.venv/.installed: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(BASE_PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# RLKD on the embedded default: a real model, real data, no GPU, no hub.
demo: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(PYTHON) -m accelerate.commands.launch --num_processes 1 recipes/rlkd.py

test: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(PYTHON) -m pytest

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: $(INSTALLED)
	$(PYTHON) -m mypy

check: test lint types
