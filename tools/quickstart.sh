#!/usr/bin/env bash
# The demo from nothing: environment, installs, the quickstart experiment.
#   bash tools/quickstart.sh                 a decoder: SmolLM2-135M to 80 and 60 % of its layers
#   bash tools/quickstart.sh encoder         an encoder, fine-tuned: all-MiniLM-L6-v2 to 75 %
#   bash tools/quickstart.sh [encoder] smoke the same in miniature, one or two minutes
# VENV (default .venv) and WORKDIR (default runs/quickstart...) choose the folders.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/environment.sh

name=quickstart size=full
for word in "$@"; do
  case $word in
    encoder) name=quickstart_encoder ;;
    smoke | full) size=$word ;;
    *) echo "error: $word is none of encoder, smoke" >&2 && exit 2 ;;
  esac
done
workdir=${WORKDIR:-runs/$name$([ "$size" = full ] || echo "-$size")}
make_environment "${VENV:-.venv}" demo
exec "$PY" -m experiments.compress --config="configs/$name.py:$size" --workdir="$workdir"
