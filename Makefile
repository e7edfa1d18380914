# Graftline's commands for those who try it and those who work on it. `make` lists them.
PYTHON := .venv/bin/python
FOLDERS := pipeline components schemas serving kubeflow
TYPES := build/types/graftline
RESOLVE := .venv/bin/uv pip compile --quiet --upgrade --no-header --no-annotate \
	--override requirements/overrides.in --extra development --extra lite pyproject.toml
# A file's tests share what is slow to make, a trained model for one: each file stays in one process.
PYTEST := $(PYTHON) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --durations 25
# Without compiled modules every process would compile TensorFlow anew, ten seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help environment demo test test-fast test-end-to-end test-flink test-current check format \
	lock clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

environment: ## make or update .venv
	@requirements/environment.sh

demo: environment ## the main job on handwritten digits, five minutes
	@$(PYTHON) -m graftline.pipeline.demo demo

test: check ## all checks and tests
	$(PYTEST)

test-fast: environment ## the tests that take seconds
	$(PYTEST) -m "not end_to_end"

test-end-to-end: environment ## the tests that run whole pipelines and real processes
	$(PYTEST) -m end_to_end

test-flink: environment ## the tests on a real Flink cluster (Java 17, Maven)
	$(PYTHON) -m pytest -m flink --durations 25

test-current: ## the fast tests and the demo on the current stack, in a Debian 13 tree (root)
	requirements/debian13.sh test-fast demo

check: environment ## lint, format, types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	.venv/bin/shellcheck requirements/*.sh .ci/run
	@mkdir -p $(TYPES)
	@for folder in $(FOLDERS); do ln -sfn ../../../$$folder $(TYPES)/$$folder; done
	$(PYTHON) -m mypy

format: environment ## put the sources into shape
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

lock: environment ## resolve both lock files anew, to the newest versions the pins allow
	$(RESOLVE) --python-version 3.10 -o requirements/tfx-1.16.lock requirements/tfx-1.16.in
	$(RESOLVE) --python-version 3.12 --universal -o requirements/tfx-1.21.lock requirements/tfx-1.21.in

clean: ## remove what these targets made
	rm -rf .venv .venv.lock build demo .mypy_cache .pytest_cache .ruff_cache *.egg-info
