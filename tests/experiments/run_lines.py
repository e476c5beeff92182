"""Runs command lines of the entry points, each in a fork of a process that has imported them.

    python -m tests.experiments.run_lines < LINES

A line is a JSON list: module, then its arguments. Prints a JSON object with status, stdout and
stderr for each.
"""

import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback
import warnings

IMPORTED = ("train", "compress", "sweep")


def run(module: str, arguments: list[str]) -> dict:
    """Status and output of one command."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(log.fileno(), 2)
            status = _child(module, arguments)
            sys.stdout.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return {"status": status, "stdout": _text(out), "stderr": _text(log)}


def _text(file) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _child(module: str, arguments: list[str]) -> int:
    warnings.simplefilter("ignore")  # runpy: the module was imported before
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code or 0
    except BaseException:
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(f"experiments.{name}")
    for line in sys.stdin:
        module, *arguments = json.loads(line)
        print(json.dumps(run(module, arguments)), flush=True)
