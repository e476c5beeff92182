#!/usr/bin/env bash
# Builds the documentation into site/, strictly: a broken link or a name that is gone fails.
#   bash tools/docs.sh            installs the extra `docs` if need be, builds
#   bash tools/docs.sh --serve    the same, then serves it at http://127.0.0.1:8000
# VENV (default .venv) chooses the environment. The build itself fetches nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/environment.sh

folder=${VENV:-.venv}
python=$folder/bin/python
[ -x "$python" ] || "$(find_python)" -m venv "$folder"
"$python" -c 'import material, mkdocstrings_handlers.python' 2>/dev/null \
  || "$python" -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
"$python" -m tools.module_graph --out=docs/figures/imports.svg
NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict --quiet
echo "documentation: site/index.html"
if [ "${1:-}" = --serve ]; then
  exec "$python" -m mkdocs serve
fi
