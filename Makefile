# Every target does its own set-up: it needs Python 3.11, git and make, and nothing else.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
# torch is for tests only. Where the CPU build is wanted, say so: make test TORCH='torch==2.13.0 --index-url ...'
TORCH := torch==2.13.0
# Processes that run tests side by side, a file each; most tests keep one core busy.
WORKERS := 2
METER := --no-deps resemblyzer==0.1.4

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-tpu-compile test-browser chromium test-all lint format docs lock release \
  bench bench-env corpus english-corpus clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## train the demo model on the built-in corpus (20 minutes, two cores), speak, measure; see demo/
	$(BIN)/python scripts/demo.py

test: $(VENV)/.dev lint ## lint, types, and every test but the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.dev ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-browser: $(VENV)/.dev chromium ## the dashboard in a real browser (Chromium; two minutes)
	$(BIN)/python -m pytest tests/browser -m browser

# Debian's own, since a browser that pip or npm would bring is not updated with the system.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium; } >/dev/null && command -v chromium; \
	  else echo "Chromium is missing: apt-get install chromium, or put one on PATH" >&2; exit 1; fi; }

test-all: $(VENV)/.dev lint ## every test; those that need another machine say so
	$(BIN)/python -m pytest --all

test-tpu-compile: $(VENV)/.dev ## the 1.3b train step compiled for a v4-64 (brings the TPU compiler, 700 MB; minutes)
	$(PIP) -e '.[tpu]'
	$(BIN)/python -m pytest -m tpu_compile

lint: $(VENV)/.dev ## ruff, pyright and shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck --external-sources --source-path=SCRIPTDIR launch/worker/*.sh
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev ## let ruff lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs ## the documentation as a site, in site/; strict: a dead link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# With UPGRADE=--upgrade the newest that pyproject.toml allows; without it pins stay unless they must move.
lock: $(VENV)/.dev ## requirements.lock: the exact versions of everything that a host of a pod installs
	$(BIN)/uv pip compile pyproject.toml --extra tpu --extra gcs --python-version 3.11 --quiet $(UPGRADE) \
	  --python-platform x86_64-manylinux_2_31 --custom-compile-command 'make lock' --output-file requirements.lock

release: $(VENV)/.dev ## wheel and sdist in dist/; the wheel is installed in full into a fresh environment, and speaks
	rm -rf dist .cache/release
	$(BIN)/python -m hatchling build -d dist
	$(PYTHON) -m venv .cache/release
	.cache/release/bin/pip install --quiet dist/*.whl
	cd .cache/release && bin/echotts --version && bin/echotts speak --text "seven three one nine"

bench: $(VENV)/.bench chromium ## the measurements behind README's figures (about an hour on two cores)
	for script in $$(grep -l __main__ benchmarks/*.py); do \
		echo "== $$script"; $(BIN)/python -m benchmarks.$$(basename $$script .py) || exit 1; done

bench-env: $(VENV)/.bench ## .venv with the PyTorch systems that the benchmarks measure against

corpus: $(VENV)/.dev ## speak the built-in corpus anew, into corpus/ (espeak-ng never repeats itself bit for bit)
	$(BIN)/python -m echotts data demo --output corpus

# Five styles of Kokoro and their mixes in pairs; HELD_OUT_VOICE speaks held-out texts only.
STYLES := jf_alpha jf_gongitsune jf_nezumi jf_tebukuro jm_kumo
MIXES := jf_alpha:50+jf_gongitsune:50 jf_alpha:50+jf_nezumi:50 jf_alpha:50+jf_tebukuro:50 jf_alpha:50+jm_kumo:50 \
	jf_gongitsune:50+jf_nezumi:50 jf_gongitsune:50+jf_tebukuro:50 jf_gongitsune:50+jm_kumo:50 \
	jf_nezumi:50+jf_tebukuro:50 jf_tebukuro:50+jm_kumo:50
HELD_OUT_VOICE := jf_nezumi:50+jm_kumo:50
HOURS := 25

english-corpus: $(VENV)/.teachers ## English speech to train on, into english/ (needs wordnet-base; 20 core-hours; goes on where it was stopped)
	$(BIN)/python scripts/english_texts.py --output english/texts
	$(BIN)/python -m echotts data speak --teacher kokoro --texts english/texts/heldout.txt --output english/heldout \
		--voices $(STYLES) $(MIXES) $(HELD_OUT_VOICE) --processes $(WORKERS)
	$(BIN)/python -m echotts data speak --teacher kokoro --texts english/texts/train.txt --output english/train \
		--voices $(STYLES) $(MIXES) --hours $(HOURS) --processes $(WORKERS)

setup: $(VENV)/.dev ## .venv with everything for development

clean: ## remove environments, caches and what the commands wrote
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis demo dist site

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

# A stamp is older than pyproject.toml when the list of dependencies has changed.
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

# Of what these two list, the models that are measured need torch and einops alone.
$(VENV)/.bench: $(VENV)/.dev
	$(PIP) einops
	$(PIP) --no-deps descript-audio-codec==1.0.0 echo-tts==0.1.4
	touch $@
