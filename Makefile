# `make` alone lists the targets and the variables.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:

MODEL      ?=## model to evaluate: folder, hub id, hub id@revision, GGUF file or adapter folder
ORIGINAL   ?=## pair: the original model; compare: its run
PRUNED     ?=## pair: the pruned model; compare: its run (alone: against its baseline)
BASELINE   ?=## eval: the run or model that this one is compared with
TASKS      ?=## tasks, separated by commas; the seven without it
LIMIT      ?=## score only the first LIMIT documents of each task
EXPERIMENT ?=## MLflow experiment to log into
DIR        ?=data## data: the folder to fill with task rows and the perplexity corpus
ARGS       ?=## more options for the command: ARGS='--dtype bfloat16 --batch-size 8'
FAST       ?=## test: 1 leaves out the slow tests
PYTHON     ?=## Python for .venv; the active environment's without it

# Values reach the recipes as they were typed, through the environment: spaces and $ are safe.
VARIABLES := MODEL ORIGINAL PRUNED BASELINE TASKS LIMIT EXPERIMENT DIR ARGS FAST PYTHON
$(foreach name,$(VARIABLES),$(eval override $(name) := $$(value $(name))))
export $(VARIABLES)

STAMP := .venv/.stamp
SCRIPTS := scripts/setup_env.py scripts/setup_plan.py scripts/find_python
PRUNESCOPE := .venv/bin/prunescope
EVAL_OPTIONS = $${TASKS:+--tasks "$$TASKS"} $${LIMIT:+--limit "$$LIMIT"} \
	$${EXPERIMENT:+--experiment "$$EXPERIMENT"}
SET_UP = python=$$(sh scripts/find_python) && "$$python" scripts/setup_env.py

# Stale as well: an environment that was made in another folder, or whose linked torch is gone.
ifneq "$(shell cat $(STAMP) 2>/dev/null)" "$(CURDIR)/.venv"
.PHONY: $(STAMP)
endif
ifneq "$(shell find -L .venv/linked-torch -maxdepth 1 -type l 2>/dev/null)" ""
.PHONY: $(STAMP)
endif

.PHONY: help setup eval pair compare demo data ui test check faults bench docs docs-cli screenshots clean

help: ## list the targets and the variables
	@echo "Targets (each sets up .venv by itself when it is missing or stale):"
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  %-11s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "Variables (make eval MODEL=path TASKS=boolq,rte LIMIT=100):"
	@awk -F ' *[?]=|## ' '/^[A-Z]+ *[?]=/ \
		{printf "  %-11s %s%s\n", $$1, $$3, $$2 == "" ? "" : " [" $$2 "]"}' Makefile

setup: ## create or update .venv; a torch in the active environment is kept and used
	@$(SET_UP)

$(STAMP): pyproject.toml constraints.txt $(SCRIPTS)
	@$(SET_UP)

eval: need-MODEL $(STAMP) ## evaluate MODEL and log the run: TASKS LIMIT BASELINE EXPERIMENT ARGS
	@$(PRUNESCOPE) eval "$$MODEL" $(EVAL_OPTIONS) $${BASELINE:+--baseline "$$BASELINE"} $(ARGS)

pair: need-ORIGINAL need-PRUNED $(STAMP) ## evaluate ORIGINAL and PRUNED and compare them: TASKS LIMIT EXPERIMENT ARGS
	@$(PRUNESCOPE) pair "$$ORIGINAL" "$$PRUNED" $(EVAL_OPTIONS) $(ARGS)

compare: need-PRUNED $(STAMP) ## compare two runs, ORIGINAL and PRUNED: ARGS
	@$(PRUNESCOPE) compare $${ORIGINAL:+"$$ORIGINAL"} "$$PRUNED" $(ARGS)

demo: $(STAMP) ## evaluate SmolLM2-135M and a pruned copy, and compare them: ARGS
	@$(PRUNESCOPE) demo $(ARGS)

data: $(STAMP) ## fetch task rows and the corpus into DIR, for machines without network: TASKS ARGS
	@$(PRUNESCOPE) data pull "$$DIR" $${TASKS:+--tasks "$$TASKS"} $(ARGS)

ui: $(STAMP) ## show the runs in a browser: ARGS
	@$(PRUNESCOPE) ui $(ARGS)

test: $(STAMP) ## run the tests, the slow ones too unless FAST=1: ARGS
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} .venv/bin/python -m pytest -n 2 --dist loadfile \
		$(if $(FAST),-m "not slow") $(ARGS)

check: $(STAMP) ## formatting, lint, types, and whether docs/cli.md is fresh
	@scripts/check

faults: $(STAMP) ## kill evaluations, break servers, fill disks: print what was lost: ARGS
	@.venv/bin/python scripts/faults.py $(ARGS)

bench: $(STAMP) ## run the benchmarks of bench/
	@for file in bench/*.py; do echo "== $$file"; .venv/bin/python "$$file" || exit; done

docs: $(STAMP) ## build the documentation as a site in build/site
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

screenshots: $(STAMP) ## take the pictures of docs/images from mlruns, after make demo: ARGS
	@.venv/bin/python scripts/screenshots.py $(ARGS)

docs-cli: $(STAMP) ## write docs/cli.md anew from --help
	@.venv/bin/python scripts/cli_docs.py

clean: ## remove .venv, caches and built packages; mlruns and eval_results stay
	@rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: need-MODEL need-ORIGINAL need-PRUNED
need-MODEL:
	@test -n "$$MODEL" || { echo "MODEL is missing: make eval MODEL=folder-or-hub-id" >&2; exit 2; }
need-ORIGINAL:
	@test -n "$$ORIGINAL" || \
		{ echo "ORIGINAL is missing: make pair ORIGINAL=model PRUNED=model" >&2; exit 2; }
need-PRUNED:
	@test -n "$$PRUNED" || \
		{ echo "PRUNED is missing: make compare ORIGINAL=run PRUNED=run" >&2; exit 2; }
