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

.PHONY: help environment kubeflow-environment demo test test-fast test-end-to-end test-kubeflow
.PHONY: test-flink test-current check format lock clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 30

environment: ## make or update .venv
	@requirements/environment.sh

kubeflow-environment: environment ## make or update .venv-kfp, which `graftline kubeflow` uses
	@requirements/kubeflow_environment.sh

demo: environment ## the main job on handwritten digits, five minutes
	@$(PYTHON) -m graftline.pipeline.demo demo

test: check kubeflow-environment ## all checks and tests
	$(PYTEST)

test-fast: kubeflow-environment ## the tests that take seconds
	$(PYTEST) -m "not end_to_end"

test-end-to-end: kubeflow-environment ## the tests that run whole pipelines and real processes
	$(PYTEST) -m end_to_end

test-kubeflow: kubeflow-environment ## the package for Kubeflow Pipelines, compiled and executed
	@PATH="$$PATH:/usr/sbin" command -v mariadbd >/dev/null || \
		{ echo "The package is executed on MariaDB: apt-get install mariadb-server" >&2; exit 2; }
	GRAFTLINE_TEST_EXACT_COMMANDS=1 $(PYTEST) tests/unit/test_kubeflow_*.py \
		tests/end_to_end/test_kubeflow*.py

test-flink: environment ## the tests on a real Flink cluster (Java 17, Maven)
	@$(PYTHON) tests/flink_software.py
	$(PYTHON) -m pytest -m flink --durations 25

test-current: ## the fast tests and the demo on the current stack, in a Debian 13 tree (root)
	requirements/debian13.sh test-fast demo

check: environment ## lint, format, types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	.venv/bin/shellcheck requirements/*.sh kubeflow/manifests/base/metadata/*.sh .ci/run
	@mkdir -p $(TYPES)
	@for folder in $(FOLDERS); do ln -sfn ../../../$$folder $(TYPES)/$$folder; done
	$(PYTHON) -m mypy

format: environment ## put the sources into shape
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

lock: environment ## resolve the lock files anew, to the newest versions the pins allow
	$(RESOLVE) --python-version 3.10 -o requirements/tfx-1.16.lock requirements/tfx-1.16.in
	$(RESOLVE) --python-version 3.12 --universal -o requirements/tfx-1.21.lock requirements/tfx-1.21.in
	@# What images have besides, for CUDA and notebooks.
	.venv/bin/uv pip compile --quiet --no-header --no-annotate --override requirements/overrides.in \
		--extra cuda --extra notebook --constraint requirements/tfx-1.21.lock \
		--python-version 3.13 --python-platform x86_64-manylinux_2_40 \
		requirements/tfx-1.21.in pyproject.toml | grep -vxFf requirements/tfx-1.21.lock \
		>requirements/images.lock
	.venv/bin/uv pip compile --quiet --upgrade --no-header --no-annotate --python-version 3.10 \
		--universal -o kubeflow/requirements.lock kubeflow/requirements.in

clean: ## remove what these targets made
	rm -rf .venv .venv.lock .venv-kfp .venv-kfp.lock build demo .mypy_cache .pytest_cache .ruff_cache *.egg-info
