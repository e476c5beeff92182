"""What the TPU compiler says: kernels, choices of the planner, slices that hold a run."""

import argparse
import pathlib
import subprocess
import sys


def parser(description: str, cell: str, minutes: float | None = None) -> argparse.ArgumentParser:
    """Options of a command: a folder of cells, one of them alone, and how long cells are begun."""
    made = argparse.ArgumentParser(description=description.partition("\n")[0])
    made.add_argument("--out", required=True, help="folder of the cells")
    made.add_argument("--cell", default="", help=f"{cell}: compile this one only")
    if minutes is not None:
        made.add_argument("--minutes", default=minutes, type=float, help="no cell starts after")
    return made


def compile_apart(module: str, folder: pathlib.Path, cell: str, **options) -> None:
    """Runs a command of this package for one cell, in a process of its own.

    Where the compiler crashes, the others are compiled all the same. `options` are those of
    `subprocess.run`.
    """
    command = [sys.executable, "-m", f"tools.benchmarks.tpu.{module}"]
    subprocess.run([*command, f"--out={folder}", f"--cell={cell}"], check=False, **options)
