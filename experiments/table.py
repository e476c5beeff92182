"""The tables of papers: published values next to ours.

    python -m experiments.table mpop_table3 --workdir=runs --out=tables
    python -m experiments.table mpop_table3 --list --model_dir=CHECKPOINTS --data_dir=DATA
    python -m experiments.table mpop_table1 --before=FOLDER --after=FOLDER
    python -m experiments.table mpop_figure2 --model=FOLDER
    python -m experiments.table mpoe --workdir=runs

Names: mpop_table1 .. mpop_table5, mpop_figure2, mpobert_table1 .. mpobert_table7, mpoe_table1 ..
mpoe_table4 (mpoe_table1 is two: mpoe_table1_t5 and mpoe_table1_gpt2), opdf_table1; mpop, mpobert,
mpoe and opdf stand for all tables of a paper. Ours is from the `result.json` of finished runs at or
below --workdir, matched by architecture, variant and task (see `experiments.tables.results.score`);
parameter counts come from shapes and need no weights. --list prints the command of every row, and
whether data and weights for it are at hand; `experiments.reproduce` runs them. Printed, and written
as Markdown and CSV to --out (default: the workdir, if one is given).
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from experiments.tables import analyses, cells, costs, page, results, schema, scores
from mpojax import files

# Name -> function of (runs, command-line options), of tables that are not scores.
ANALYSES: dict[str, Callable[[Sequence[results.Run], argparse.Namespace], page.Page]] = {
    "mpop_table1": lambda runs, options: analyses.table1(runs, options.before, options.after),
    "mpop_table2": lambda runs, options: analyses.table2(),
    "mpop_figure2": lambda runs, options: analyses.figure2(options.model),
    "mpobert_table6": lambda runs, options: costs.table6(runs),
    "mpobert_table7": lambda runs, options: costs.table7(),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints and writes tables; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        names = schema.find(options.name)
        runs = results.find(options.workdir) if options.workdir and not options.list else []
        for name in names:
            if options.list:
                folders = cells.Folders(
                    options.workdir or "runs", options.model_dir, options.data_dir
                )
                with files.nothing_fetched():
                    print("\n".join(cells.listing(schema.load(name), folders)))
            else:
                make(name, runs, options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def make(name: str, runs: Sequence[results.Run], options: argparse.Namespace) -> None:
    """Prints one table and writes it, where there is a folder for it."""
    if name in ANALYSES:
        made = ANALYSES[name](runs, options)
    else:
        made = scores.build(schema.load(name), runs)
    page.show(made)
    if name not in ANALYSES and not made.records.seeds.any():
        where = f"below {options.workdir}" if options.workdir else "(no --workdir was given)"
        print(
            f"No finished runs of this table {where}: counts are from shapes. "
            f"`python -m experiments.table {name} --list` shows the commands, "
            f"`python -m experiments.reproduce {name}` runs them."
        )
    if folder := options.out or options.workdir:
        for path in page.write(made, files.at(folder)):
            print(f"written: {path}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what tables are made from, besides their names."""
    parser.add_argument("--out", default="", help="folder for Markdown, CSV and figures")
    parser.add_argument("--model_dir", default="", help="folder with checkpoint folders")
    parser.add_argument("--data_dir", default="", help="folder with glue/, wikitext-2/")
    parser.add_argument("--before", default="", help="mpop_table1: checkpoint before tuning")
    parser.add_argument("--after", default="", help="mpop_table1: checkpoint after tuning")
    parser.add_argument("--model", default="", help="mpop_figure2: checkpoint with the embedding")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="one of those above")
    parser.add_argument("--workdir", default="", help="folder with finished runs, at any depth")
    parser.add_argument("--list", action="store_true", help="show the command of every row")
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
