#!/usr/bin/env bash
# The demo from nothing: environment, installs, the quickstart experiment.
#   bash tools/quickstart.sh           about ten minutes on two cores after the installs
#   bash tools/quickstart.sh smoke     the same in two to three minutes
# VENV (default .venv) and WORKDIR (default runs/quickstart) choose the folders.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/environment.sh

size=${1:-full}
workdir=${WORKDIR:-runs/quickstart$([ "$size" = full ] || echo "-$size")}
make_environment "${VENV:-.venv}" demo
exec "$PY" -m experiments.compress --config="configs/quickstart.py:$size" --workdir="$workdir"
