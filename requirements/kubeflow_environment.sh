#!/usr/bin/env bash
# Makes or updates the environment with the SDK of Kubeflow Pipelines in .venv-kfp.
#
#   requirements/kubeflow_environment.sh
#
# It holds what kubeflow/requirements.lock names and nothing of Graftline. Does nothing when it is up
# to date; two at once wait for each other. Needs .venv, whose uv installs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock=kubeflow/requirements.lock
# Environments cannot be moved, so that the folder is in the stamp.
stamp="$PWD: $(cat "$lock" requirements/kubeflow_environment.sh | sha256sum)"
up_to_date() { [[ -x .venv-kfp/bin/python && $(cat .venv-kfp/stamp 2>/dev/null) == "$stamp" ]]; }

up_to_date && exit
exec 9>.venv-kfp.lock
flock 9
up_to_date && exit

echo "Making .venv-kfp from $lock."
rm -rf .venv-kfp
.venv/bin/python -m venv --without-pip .venv-kfp
.venv/bin/uv pip sync --quiet --python .venv-kfp/bin/python "$lock"
echo "$stamp" >.venv-kfp/stamp
