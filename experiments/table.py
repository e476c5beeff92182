"""The tables of a paper: published values next to ours.

    python -m experiments.table mpop_table3 --workdir=runs --out=tables
    python -m experiments.table mpop_table3 --list --model_dir=CHECKPOINTS --data_dir=DATA
    python -m experiments.table mpop_table1 --before=FOLDER --after=FOLDER
    python -m experiments.table mpop_figure2 --model=FOLDER
    python -m experiments.table mpobert_table1 --workdir=runs
    python -m experiments.table mpoe_table3 --workdir=runs
    python -m experiments.table opdf_table1 --workdir=runs

Names: mpop_table1 .. mpop_table5, mpop_figure2, mpobert_table1 .. mpobert_table7, mpoe_table1 ..
mpoe_table4 (mpoe_table1 is two: mpoe_table1_t5 and mpoe_table1_gpt2), opdf_table1. Ours is from the
`result.json` of finished runs at or below --workdir, matched by architecture, variant and task (see
`experiments.tables.results.score`); parameter counts come from shapes and need no weights. --list
prints the command of every row, and whether data and weights for it are at hand. Printed,
and written as Markdown and CSV to --out (default: the workdir, if one is given).
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence

from experiments.tables import (
    analyses,
    costs,
    listing,
    page,
    published,
    published_mpobert,
    published_mpoe,
    published_opdf,
    results,
    scores,
)

SCORES = {
    **published.SCORES,
    **published_mpobert.SCORES,
    **published_mpoe.SCORES,
    **published_opdf.SCORES,
}
# Name -> function of (runs, command-line options).
TABLES: dict[str, Callable[[Sequence[results.Run], argparse.Namespace], page.Page]] = {
    "mpop_table1": lambda runs, options: analyses.table1(runs, options.before, options.after),
    "mpop_table2": lambda runs, options: analyses.table2(),
    **{
        name: lambda runs, options, table=table: scores.build(table, runs)
        for name, table in SCORES.items()
    },
    "mpop_figure2": lambda runs, options: analyses.figure2(options.model),
    "mpobert_table6": lambda runs, options: costs.table6(runs),
    "mpobert_table7": lambda runs, options: costs.table7(),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints and writes one table; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        names = published_mpoe.GROUPS.get(options.name, (options.name,))
        if names[0] not in TABLES:
            known = ", ".join([*TABLES, *published_mpoe.GROUPS])
            raise ValueError(f"unknown table {options.name!r}; there are {known}.")
        runs = results.find(options.workdir) if options.workdir and not options.list else []
        for name in names:
            if options.list:
                found = listing.lines(
                    name, SCORES, options.model_dir, options.data_dir, options.workdir
                )
                print("\n".join(found))
            else:
                _make(name, runs, options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _make(name: str, runs: Sequence[results.Run], options: argparse.Namespace) -> None:
    """Prints one table and writes it, where there is a folder for it."""
    made = TABLES[name](runs, options)
    page.show(made)
    if name in SCORES and not any(r["seeds"] for r in made.records):
        where = f"below {options.workdir}" if options.workdir else "(no --workdir was given)"
        print(
            f"No finished runs of this table {where}: counts are from shapes. "
            f"`python -m experiments.table {name} --list` shows the commands."
        )
    if folder := options.out or options.workdir:
        for path in page.write(made, pathlib.Path(folder).expanduser()):
            print(f"written: {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="one of those above")
    parser.add_argument("--workdir", default="", help="folder with finished runs, at any depth")
    parser.add_argument("--out", default="", help="folder for Markdown, CSV and plots")
    parser.add_argument("--list", action="store_true", help="show the command of every row")
    parser.add_argument("--model_dir", default="", help="--list: folder with checkpoint folders")
    parser.add_argument("--data_dir", default="", help="--list: folder with glue/, wikitext-2/")
    parser.add_argument("--before", default="", help="mpop_table1: checkpoint before tuning")
    parser.add_argument("--after", default="", help="mpop_table1: checkpoint after tuning")
    parser.add_argument("--model", default="", help="mpop_figure2: checkpoint with the table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
