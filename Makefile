# Everything runs in a virtual environment, made once from pinned packages. To use one that has them already:
#     make lesson3 PYTHON=python3          (any interpreter; nothing is installed into it)
VENV := .venv
ifeq ($(origin PYTHON), undefined)
PYTHON := $(VENV)/bin/python
RUNTIME := $(VENV)/runtime-installed
TESTING := $(VENV)/tests-installed
endif
LESSONS := $(sort $(patsubst lessons/%.py,%,$(wildcard lessons/lesson*.py)))

help: ## this text
	@echo "minip2p: Prompt-to-Prompt on a Stable Diffusion written out by hand.  make TARGET [NAME=value ...]"; echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@for name in $(LESSONS); do printf "  %-9s %s\n" "$${name%%_*}" "$$(sed -n '1s/"""//p' lessons/$$name.py)"; done
	@echo; echo "  Lessons take WEIGHTS, DEVICE, SEED, STEPS, SEEDS and OUT, e.g. make lesson3 SEED=7"
	@echo "  PYTHON=python3 uses an environment of your own instead of $(VENV)"

lesson%: $(RUNTIME)
	@$(if $(filter lesson$*_%,$(LESSONS)),,echo "there is no lesson $*: run make for a list" >&2; exit 2)
	$(PYTHON) -m lessons.$(filter lesson$*_%,$(LESSONS))

test: $(TESTING) ## run all tests
	$(PYTHON) -m pytest -n auto --maxprocesses 4 --dist worksteal

weights: $(RUNTIME) ## fetch Stable Diffusion into weights/ (MODEL=1.5, 1.4 or bk-sdm-tiny)
	$(PYTHON) -m weights.fetch $(MODEL)

toy: $(RUNTIME) ## train the toy Stable Diffusion anew (minutes on a GPU, a night on a CPU; weights/README.md)
	$(PYTHON) -m weights.toyworld.train

scorecard: $(RUNTIME) ## measure how good the toy is (a quarter of an hour; weights/scorecard)
	$(PYTHON) -m weights.scorecard

bench: $(TESTING) ## compare speed and memory with diffusers and the authors' way
	$(PYTHON) -m tests.bench.bench

pages: $(RUNTIME) ## run all lessons and write lessons/pages anew (ten minutes)
	$(PYTHON) -m lessons.pages

clean: ## remove the virtual environment and what lessons wrote
	rm -rf $(VENV) out

$(VENV)/runtime-installed: requirements.txt
	python3 -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info < (3, 14) else "minip2p needs Python 3.10 to 3.13; python3 is " + sys.version.split()[0])'
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/tests-installed: requirements-test.txt $(VENV)/runtime-installed
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

.PHONY: help test weights toy scorecard bench pages clean
.DEFAULT_GOAL := help
