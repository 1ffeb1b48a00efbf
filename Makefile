# Every target does its own setup: it needs only Python 3.11, git and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
# torch is only for tests. For the CPU build: make test TORCH='torch==2.13.0 --index-url ...'
TORCH := torch==2.13.0
# Number of parallel test processes, which run whole files; most tests keep one core busy.
WORKERS := 2
METER := --no-deps resemblyzer==0.1.4

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-tpu-compile test-browser chromium test-all lint format docs lock release \
  bench bench-env corpus english-corpus clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## train the demo model on the built-in corpus (20 minutes, two cores), speak, evaluate; see demo/
	$(BIN)/python scripts/demo.py

test: $(VENV)/.dev lint ## lint, types, and all tests except slow ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.dev ## tests that take minutes
	$(BIN)/python -m pytest -m slow

test-browser: $(VENV)/.dev chromium ## the dashboard in a real browser (Chromium; two minutes)
	$(BIN)/python -m pytest tests/browser -m browser

# Debian's package, since a browser from pip or npm would not be updated with the system.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium; } >/dev/null && command -v chromium; \
	  else echo "Chromium is missing: apt-get install chromium, or put one on PATH" >&2; exit 1; fi; }

test-all: $(VENV)/.dev lint ## all tests; those that need other hardware are skipped with a message
	$(BIN)/python -m pytest --all

test-tpu-compile: $(VENV)/.dev ## the 1.3b train step compiled for a v4-64 (installs the TPU compiler, 700 MB; minutes)
	$(PIP) -e '.[tpu]'
	$(BIN)/python -m pytest -m tpu_compile

lint: $(VENV)/.dev ## ruff, pyright and shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck --external-sources --source-path=SCRIPTDIR launch/worker/*.sh
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs ## build the documentation site in site/; fails on dead links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# With UPGRADE=--upgrade the newest versions that pyproject.toml allows; else pins change only if necessary.
lock: $(VENV)/.dev ## update requirements.lock: the exact versions installed on pod hosts
	$(BIN)/uv pip compile pyproject.toml --extra tpu --extra gcs --python-version 3.11 --quiet $(UPGRADE) \
	  --python-platform x86_64-manylinux_2_31 --custom-compile-command 'make lock' --output-file requirements.lock

release: $(VENV)/.dev ## wheel and sdist in dist/; installs the wheel into a fresh environment and tests synthesis
	rm -rf dist .cache/release
	$(BIN)/python -m hatchling build -d dist
	$(PYTHON) -m venv .cache/release
	.cache/release/bin/pip install --quiet dist/*.whl
	cd .cache/release && bin/echotts --version && bin/echotts speak --text "seven three one nine"

bench: $(VENV)/.bench chromium ## the benchmarks that need no data of yours (about an hour on two cores)
	for script in $$(grep -L required=True $$(grep -l __main__ benchmarks/*.py)); do \
		echo "== $$script"; $(BIN)/python -m benchmarks.$$(basename $$script .py) || exit 1; done

bench-env: $(VENV)/.bench ## .venv with the PyTorch implementations that benchmarks compare with

corpus: $(VENV)/.dev ## regenerate the built-in corpus in corpus/ (not bitwise reproducible, because of espeak-ng)
	$(BIN)/python -m echotts data demo --output corpus

# Five styles of Kokoro and their pairwise mixes; HELD_OUT_VOICE speaks only held-out texts.
STYLES := jf_alpha jf_gongitsune jf_nezumi jf_tebukuro jm_kumo
MIXES := jf_alpha:50+jf_gongitsune:50 jf_alpha:50+jf_nezumi:50 jf_alpha:50+jf_tebukuro:50 jf_alpha:50+jm_kumo:50 \
	jf_gongitsune:50+jf_nezumi:50 jf_gongitsune:50+jf_tebukuro:50 jf_gongitsune:50+jm_kumo:50 \
	jf_nezumi:50+jf_tebukuro:50 jf_tebukuro:50+jm_kumo:50
HELD_OUT_VOICE := jf_nezumi:50+jm_kumo:50
HOURS := 25

english-corpus: $(VENV)/.teachers ## synthetic English training speech in english/ (needs wordnet-base; 20 core-hours; resumable)
	$(BIN)/python scripts/english_texts.py --output english/texts
	$(BIN)/python -m echotts data speak --teacher kokoro --texts english/texts/heldout.txt --output english/heldout \
		--voices $(STYLES) $(MIXES) $(HELD_OUT_VOICE) --processes $(WORKERS)
	$(BIN)/python -m echotts data speak --teacher kokoro --texts english/texts/train.txt --output english/train \
		--voices $(STYLES) $(MIXES) --hours $(HOURS) --processes $(WORKERS)

setup: $(VENV)/.dev ## .venv with everything for development

clean: ## remove environments, caches and outputs
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis demo dist site

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

# Stamps are older than pyproject.toml if the dependencies have changed.
$(VENV)/.runtime: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[eval]'
	$(PIP) $(METER)
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) $(TORCH)
	$(PIP) -e '.[dev,eval,asr,gcs,teachers]'
	$(PIP) $(METER)
	touch $@ $(VENV)/.runtime

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[docs]'
	touch $@

$(VENV)/.teachers: $(VENV)/.runtime
	$(PIP) -e '.[teachers]'
	touch $@

# Of the dependencies of these two, the benchmarked models need only torch and einops.
$(VENV)/.bench: $(VENV)/.dev
	$(PIP) einops
	$(PIP) --no-deps descript-audio-codec==1.0.0 echo-tts==0.1.4
	touch $@
