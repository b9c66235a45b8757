# All names are relative: GNU make splits absolute ones where the repository's path has a space.

RUN_UPDATES ?= 5000
RUN_DIR := runs/quickstart
PY := .venv/bin/python

# Progress shows line by line in a log file too.
export PYTHONUNBUFFERED := 1

.PHONY: help run test data grid tables speed play format sync diffstat clean
.NOTPARALLEL:

help:
	@echo "make run       set-up, a small dataset, a short training of POR, and its curve"
	@echo "make test      set-up, then the tests; SLOW=1 adds those that compile or run whole commands"
	@echo "make data      rebuild a dataset: make data NAME=hopper-medium"
	@echo "make grid      train algorithms on datasets: make grid ALGORITHMS='bc iql' DATASETS='rebuilt/*'"
	@echo "make tables    the tables and figures of benchmarks/scores and README.md, and their checks"
	@echo "make speed     updates per second of every script on this machine"
	@echo "make play      film a policy: make play RUN=runs/quickstart"
	@echo "make format    ruff's layout for all Python files, and what ruff can correct"
	@echo "make sync      carry what scripts share from por.py to the others (MODEL=algorithms/x.py)"
	@echo "make diffstat  by how many lines the scripts differ"
	@echo "make clean     remove caches and $(RUN_DIR); .venv and the datasets stay"
	@echo "The set-up makes .venv. Options: PYTHON=/path/to/python (3.11 or newer), RUN_UPDATES=$(RUN_UPDATES)"

# The mark `installing` outlives a killed set-up: such a .venv may lack files that pip believes to
# be there, so it is made anew. One without the mark is only brought up to date.
.venv/installed: requirements.txt
	@usable='import sys, venv; sys.exit(sys.version_info < (3, 11))'; \
	if [ -e .venv/installing ] || ! $(PY) -c "import pip; $$usable" 2>/dev/null; then \
	  if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"; \
	  else set -- python3.13 python3.12 python3.11 python3; fi; \
	  found=; for candidate do \
	    if "$$candidate" -c "import ensurepip; $$usable" 2>/dev/null; then \
	      found=$$candidate; break; fi; done; \
	  if [ -z "$$found" ]; then \
	    echo "no Python 3.11 or newer with the module venv among: $$*." \
	      "Install one (Debian, Ubuntu: python3-venv too) or say PYTHON=/path/to/python" >&2; \
	    exit 1; fi; \
	  echo "making .venv with $$("$$found" --version)"; \
	  rm -rf .venv && mkdir .venv && touch .venv/installing && "$$found" -m venv .venv; fi
	@touch .venv/installing
	$(PY) -m pip install -r requirements.txt
	@touch .venv/installed && rm .venv/installing

# A stopped training is resumed; a finished one is only drawn again.
run: .venv/installed
	$(PY) -m benchmarks.datasets.collect hopper-medium --steps 100000
	@if [ -e $(RUN_DIR)/checkpoint.pt ]; then set -- --resume $(RUN_DIR); else \
	  set -- --env rebuilt/hopper/medium-100k-v0 --guide weighted --num-seeds 2 \
	    --num-updates $(RUN_UPDATES) --eval-every $$(($(RUN_UPDATES) / 10)) \
	    --final-eval-episodes 50 --run-dir $(RUN_DIR); fi; \
	echo "$(PY) algorithms/por.py $$*"; $(PY) algorithms/por.py "$$@"
	$(PY) -m benchmarks.plot $(RUN_DIR) --out $(RUN_DIR)/curve.png
	@echo "curve        $(RUN_DIR)/curve.png"
	@echo "numbers      $(RUN_DIR)/result.json"
	@echo "TensorBoard  $(PY) -m tensorboard.main --logdir $(RUN_DIR)/tensorboard"

# A process for each core; tests that share fixtures stay together (tests/conftest.py).
test: .venv/installed
	$(PY) -m ruff format --check algorithms benchmarks tests
	$(PY) -m ruff check algorithms benchmarks tests
	$(PY) -m pytest -q -n auto --maxprocesses 8 --dist loadgroup --durations=10 \
	  -m "$(if $(SLOW),,not slow)" tests

format: .venv/installed
	$(PY) -m ruff check --fix-only algorithms benchmarks tests
	$(PY) -m ruff format algorithms benchmarks tests

MODEL ?= algorithms/por.py

sync: .venv/installed
	$(PY) -m tests.sync --model $(MODEL)

diffstat: .venv/installed
	$(PY) -m tests.sync --diffstat

NAME ?= hopper-medium

data: .venv/installed
	$(PY) -m benchmarks.datasets.collect $(NAME)

ALGORITHMS ?= bc iql por td3_bc
DATASETS ?= rebuilt/*/medium-v0
UPDATES ?= 100000

grid: .venv/installed
	$(PY) -m benchmarks.run --algorithms $(ALGORITHMS) --datasets '$(DATASETS)' \
	  --num-seeds 3 --num-updates $(UPDATES)

tables: .venv/installed
	$(PY) -m benchmarks.scores.tables
	$(PY) -m benchmarks.scores.check

speed: .venv/installed
	$(PY) -m benchmarks.speed.measure --script $(notdir $(basename $(wildcard algorithms/*.py)))

RUN ?= $(RUN_DIR)

play: .venv/installed
	$(PY) -m benchmarks.play $(RUN) --video $(RUN)/policy.gif

clean:
	rm -rf .pytest_cache $(RUN_DIR)
	find algorithms benchmarks tests -type d -name __pycache__ -prune -exec rm -rf {} +
