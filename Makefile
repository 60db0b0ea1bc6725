# Everything runs in a virtual environment that `make` creates once. To use one that has torch already:
#     make lesson3 PYTHON=python3          (or any interpreter; nothing is installed into it)
VENV := .venv
ifeq ($(origin PYTHON), undefined)
PYTHON := $(VENV)/bin/python
RUNTIME := $(VENV)/.runtime
TESTING := $(VENV)/.testing
endif
LESSONS := $(sort $(patsubst lessons/%,%,$(wildcard lessons/lesson*.py)))
SETTINGS := WEIGHTS DEVICE SEED STEPS SEEDS OUT
$(foreach name,$(SETTINGS),$(if $(filter command line,$(origin $(name))),$(eval export $(name))))

help: ## this text
	@echo "minip2p: Prompt-to-Prompt, to be read. make TARGET [NAME=value ...]"; echo
	@awk -F ':.*## ' '/^[a-z]+[a-z0-9]*:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@for f in $(LESSONS); do printf "  %-10s %s\n" "$$(echo $$f | sed 's/_.*//')" "$$(sed -n '1s/^"""//p' lessons/$$f)"; done
	@echo; echo "  lessons take $(SETTINGS), e.g. make lesson3 SEED=7"
	@echo "  PYTHON=python3 uses an environment that has the packages, instead of $(VENV)"

lesson%: $(RUNTIME)
	$(PYTHON) -m lessons.$(basename $(filter lesson$*_%.py,$(LESSONS)))

test: $(TESTING) ## run all tests
	$(PYTHON) -m pytest

toy: $(RUNTIME) ## train the toy Stable Diffusion anew (hours; see weights/README.md)
	$(PYTHON) -m weights.toyworld.train

# torch alone would come with gigabytes of CUDA where there is no such device, so Linux without one asks for the CPU build.
$(VENV)/.runtime: requirements.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -r requirements.txt
	@touch $@

$(VENV)/.testing: requirements-test.txt $(VENV)/.runtime
	$(VENV)/bin/python -m pip install -q -r requirements-test.txt
	@touch $@

clean: ## remove the virtual environment and what lessons wrote
	rm -rf $(VENV) out

.PHONY: help test toy clean
.DEFAULT_GOAL := help
