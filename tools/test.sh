#!/usr/bin/env bash
# The whole default test run from nothing: environment, test extra, lint, tests on all cores.
#   bash tools/test.sh              everything but tests marked slow
#   bash tools/test.sh -m slow      the slow ones; any pytest arguments may follow
# VENV (default .venv-test) chooses the environment.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/environment.sh

make_environment "${VENV:-.venv-test}" test
"$PY" -m ruff check .
"$PY" -m ruff format --check .
# A worker that dies ends the run: pytest-xdist may wait for ever for one that took its place.
exec "$PY" -m pytest -n "${WORKERS:-auto}" --dist loadfile --max-worker-restart 0 "$@"
