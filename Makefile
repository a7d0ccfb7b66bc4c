# Every target does its own set-up: system packages that are missing, .venv, dependencies.
# A second call finds the stamp files in .venv and starts at once.
#
#   PYTHON      interpreter for .venv, 3.10 to 3.12 (default: the first that is found)
#   TORCH       what is installed as PyTorch, before anything that depends on it
#   MUJOCO_GL   how MuJoCo renders: egl (default), osmesa, glfw
#   PYTEST_ARGS, DEMO_ARGS, BENCH_ARGS    passed on
#   SKIP_SYSTEM=1                         leaves system packages alone

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
TORCH ?= torch==2.13.0
MUJOCO_GL ?= egl
export MUJOCO_GL
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SAY := @echo "robot_rl:"

DEMO_EXTRAS := sim,report,external,data
TEST_EXTRAS := sim,report,external,data,ros,link,cameras,franka,teleop,sensors,test,lint
BENCH_EXTRAS := sim,external,data,bench

.PHONY: help demo test test-slow lint format bench bench-data bench-safety bench-learning doctor setup clean

help:  ## show this list
	@echo "make <target>; each one installs what it needs into $(VENV) first"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

demo: $(VENV)/.stamp-demo  ## teach a simulated arm a skill, with a report at the end
	$(BIN)/robot-rl demo $(DEMO_ARGS)

test: $(VENV)/.stamp-test  ## the quick tests
	scripts/test.sh $(PYTEST_ARGS)

test-slow: $(VENV)/.stamp-test  ## the slow tests (learning thresholds, long simulations)
	$(BIN)/python -m pytest -m "slow and not ros and not gpu and not hardware" $(PYTEST_ARGS)

lint: $(VENV)/.stamp-test  ## ruff and mypy
	@status=0; $(BIN)/ruff check . || status=1; $(BIN)/mypy || status=1; exit $$status

format: $(VENV)/.stamp-test  ## order imports and apply ruff's safe corrections
	$(BIN)/ruff check --fix .

bench: $(VENV)/.stamp-bench  ## measure speed and parity on this machine (minutes)
	$(BIN)/python benchmarks/env_rates.py --out benchmarks/results/env_rates.json
	$(BIN)/python benchmarks/engine_parity.py --out benchmarks/results/engine_parity.json
	$(BIN)/python benchmarks/iql_updates.py
	$(BIN)/python benchmarks/recording_rate.py

bench-data: $(VENV)/.stamp-test  ## kill, cut and mutate: is recorded data safe (a quarter of an hour)
	$(BIN)/python benchmarks/durability.py

bench-safety: $(VENV)/.stamp-test  ## a storm of commands on the safety filter, then its mutants (an hour)
	$(BIN)/python benchmarks/filter_storm.py --out benchmarks/results/filter_storm.json
	$(BIN)/python benchmarks/mutation.py --out benchmarks/results/mutation.json
	$(BIN)/python benchmarks/hardware_faults.py --out benchmarks/results/hardware_faults.json

bench-learning: $(VENV)/.stamp-demo  ## learning results over three seeds, both engines (an hour)
	$(BIN)/python benchmarks/scripted_success.py
	$(BIN)/python benchmarks/push_learning.py

doctor: $(VENV)/.stamp-demo  ## say what works on this machine and what is missing
	$(BIN)/robot-rl doctor

setup: $(VENV)/.stamp-test  ## only install: .venv with everything that the tests need

clean:  ## remove .venv, caches and build folders (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# The virtual environment, with a mark that keeps colcon out of it.
$(VENV)/.stamp-venv:
	@python="$$(scripts/system_packages.sh $(PYTHON))"; \
	if [ ! -x $(BIN)/python ]; then \
		echo "robot_rl: making $(VENV)"; \
		"$$python" -m venv $(VENV); \
	fi
	@touch $(VENV)/COLCON_IGNORE $@

# PyTorch first, so that nothing else chooses its version. PyBullet is compiled for 3.12, and
# finds numpy, which its camera images need, only in an environment that has it.
$(VENV)/.stamp-torch: | $(VENV)/.stamp-venv
	$(SAY) "installing $(TORCH) (large, takes minutes)"
	@$(PIP) install "$(TORCH)" numpy "setuptools>=64" wheel
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then \
		echo "robot_rl: compiling PyBullet for Python 3.12 (takes up to 20 minutes, once)"; \
		$(PIP) install --no-build-isolation "pybullet>=3.2.6"; \
	fi
	@touch $@

define install_extras
	$(SAY) "installing robot_rl[$(1)]"
	@$(PIP) install -e ".[$(1)]"
	@touch $@
endef

$(VENV)/.stamp-demo: setup.py pyproject.toml | $(VENV)/.stamp-torch
	$(call install_extras,$(DEMO_EXTRAS))

$(VENV)/.stamp-test: setup.py pyproject.toml | $(VENV)/.stamp-torch
	$(call install_extras,$(TEST_EXTRAS))
	@touch $(VENV)/.stamp-demo

$(VENV)/.stamp-bench: setup.py pyproject.toml | $(VENV)/.stamp-torch
	$(call install_extras,$(BENCH_EXTRAS))
