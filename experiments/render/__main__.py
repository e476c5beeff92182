r"""Table and figures of a study, or of a run, as Markdown, CSV, PNG and PDF.

    python -m experiments.render mpop_minilm --runs=runs/mpop_minilm   # from its finished runs
    python -m experiments.render mpop_minilm                           # from what is kept of them
    python -m experiments.render router --runs=runs/mpoe               # of one run with experts

Studies: `experiments/render/studies.toml`. `--runs` is the workdir of their sweep, or the
folder of their sweeps' workdirs. Runs that are not finished are left out. Data, table and figures
go to `--out`, by default the study's folder in `experiments/results`.
"""

import argparse
import pathlib
import sys

from experiments import command_line
from experiments.render import runs, studies
from mpojax import files

_RESULTS = pathlib.Path(__file__).parents[1] / "results"
ROUTER = "router"


def main(arguments: list[str] | None = None) -> int:
    """Renders what the command line names; returns the exit status."""
    options = _parser().parse_args(arguments)
    with command_line.explained():
        render(options.name, options.runs, options.out)
    return 0


def render(name: str, folder: str, out: str) -> None:
    """Renders a study, or the routers of a run."""
    source = files.at(folder)
    if name == ROUTER:
        runs.write_router(source)
        return
    study, target = studies.load()[name], _RESULTS / name
    target = files.at(out) if out else target
    if folder:
        studies.collect(study, source, target)
    print(studies.report(study, target))
    print(f"written: {target}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.render",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=(*studies.load(), ROUTER), help="one of those above")
    parser.add_argument("--runs", default="", help="folder of the runs; default: what is kept")
    parser.add_argument("--out", default="", help="folder for data, table and figures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
