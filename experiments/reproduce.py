"""Runs the rows of a paper's table that weights and data at hand allow, and prints the table.

    python -m experiments.reproduce
    python -m experiments.reproduce mpop_table3 --workdir=runs --dry_run
    python -m experiments.reproduce mpop_table3 --workdir=runs --only=albert/dense-rte
    python -m experiments.reproduce mpop_table3 --workdir=runs --model_dir=MODELS --data_dir=DATA

Without a table: lists the tables. --dry_run: lists the runs, what they cost, what is missing with
the command that gets it, and the cheapest run to try first; it downloads nothing. The same command
may be started on several machines that share the workdir: each run is claimed once, one whose
machine died is taken over after three minutes. Interrupted runs resume; failed ones are recorded in
`failed.json` of their folder, passed over by all that run meanwhile, and tried again at the next
start.
"""

import argparse
import contextlib
import fnmatch
import sys
from collections.abc import Iterator, Mapping, Sequence

from absl import flags, logging

from experiments import cells as sweep_cells
from experiments import command_line, sweep, table
from experiments.tables import cells as cells_lib
from experiments.tables import results, schema, training_cost, work
from experiments.tables.cells import Cell, Folders
from mpojax import checks, files, tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Lists tables, says what a table costs, or runs it; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if not options.name:
            print("\n".join(_tables()))
            return 0
        device = training_cost.Device(options.device, options.utilisation)
        folders = Folders(options.workdir or "runs", options.model_dir, options.data_dir)
        names = schema.find(options.name)
        found = {name: select(name, options.only, options.seeds) for name in names}
        if options.dry_run:
            with files.nothing_fetched():
                for name in names:
                    print("\n".join(plan(name, found[name], folders, device)))
            return 0
        checks.check({"--workdir": options.workdir}, {"--workdir": _FOLDER})
        statuses = []
        for name in names:
            states = run(found[name], folders)
            if states is None:
                return 0
            statuses.append(_report(name, found[name], states, folders, options))
        return max(statuses)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


_FOLDER = checks.Allowed("the folder of all runs (or give --dry_run)", bool)


def _tables() -> Iterator[str]:
    """Lines that list all tables."""
    loaded = map(schema.load, schema.names())
    rows = [[each.name, each.title, str(len(select(each.name)) or "-")] for each in loaded]
    yield tables.text(["table", "", "runs"], rows, left=2, wrap=[""])
    yield "What a table costs: python -m experiments.reproduce TABLE --dry_run"


def select(name: str, only: str = "", seeds: Sequence[int] = ()) -> list[Cell]:
    """The runs of a table, and what these start from.

    Args:
      only: patterns of their names, with commas; empty: all.
      seeds: empty: the config's own.

    Raises:
      ValueError: a pattern that fits no run.
    """
    loaded = schema.load(name)
    found = [c for c in cells_lib.of_table(loaded) if c.row.split == loaded.split]
    if seeds:
        found = [cells_lib.with_seed(cell, seed) for seed in seeds for cell in found]
    if not only:
        return found
    chosen: dict[str, Cell] = {}
    for pattern in only.split(","):
        fitting = [cell for cell in found if fnmatch.fnmatch(cell.name, pattern)]
        if not fitting:
            checks.check_names([pattern], [cell.name for cell in found], f"--only, runs of {name}")
        for cell in fitting:
            # Starts first: dicts keep the order in which runs can be done.
            chosen |= {each.name: each for each in (*cell.start.values(), cell)}
    return list(chosen.values())


def is_done(cell: Cell, folders: Folders) -> bool:
    """True if a run is finished, by whichever process."""
    return (folders.of(cell) / "result.json").is_file()


def missing(cell: Cell, folders: Folders) -> dict[str, str]:
    """{what a run, or one that it starts from, lacks: the command that gets it}."""
    found = cells_lib.missing(cell, folders)
    for other in cell.start.values():
        if not is_done(other, folders):
            found |= missing(other, folders)
        elif not (folders.of(other) / "model").is_dir():
            found[f"the model of {other.name}"] = (
                "that run has not saved it: remove its folder to run it again"
            )
    return found


def plan(
    name: str, found: Sequence[Cell], folders: Folders, device: training_cost.Device
) -> Iterator[str]:
    """Lines about the runs of a table: state, cost, and what is missing."""
    yield schema.load(name).title
    if not found:
        yield f"No runs: python -m experiments.reproduce {name} prints it."
        return
    done = {cell.name for cell in found if is_done(cell, folders)}
    needs = {cell.name: missing(cell, folders) for cell in found if cell.name not in done}
    costs = {cell.name: training_cost.flops(cell) for cell in found}
    rows = []
    for cell in found:
        lacks = needs.get(cell.name)
        state = "finished" if cell.name in done else "can run"
        numbers = f"{training_cost.steps(cell):,}", *_cost(costs[cell.name], device)
        rows.append([cell.name, f"needs {' and '.join(lacks)}" if lacks else state, *numbers])
    headers = ["run", "state", "steps", "FLOPs", "device-hours"]
    yield tables.text(headers, rows, 140, left=2, wrap=["state"])
    runnable = sum(not lacks for lacks in needs.values())
    flops, hours = _cost(sum(costs[name] for name in needs), device)
    yield (
        f"{len(rows)} runs: {len(done)} finished, {runnable} can run, {len(needs) - runnable} need "
        f"what is missing. Not finished: {flops} FLOPs, {hours} device-hours ({device}; change it "
        "with --device, --utilisation). FLOPs: of the dense model, texts padded; rebuilding "
        "matrices from their cores comes on top."
    )
    if needs:
        # False first: a run that lacks nothing, then the cheapest.
        first = min(needs, key=lambda name: (bool(needs[name]), costs[name]))
        yield (
            f"The cheapest to try first: python -m experiments.reproduce {name} "
            f"--workdir={folders.workdir} --only={first}"
        )
    if problems := {what: why for lacks in needs.values() for what, why in lacks.items()}:
        yield from ("", cells_lib.MISSING, *(f"  {what}: {why}" for what, why in problems.items()))


def _cost(flops: float, device: training_cost.Device) -> tuple[str, str]:
    return f"{flops:.1e}", f"{device.hours(flops):.2g}"


def _report(
    name: str,
    found: Sequence[Cell],
    states: Mapping[str, str],
    folders: Folders,
    options: argparse.Namespace,
) -> int:
    """Prints the table of finished runs, after a line about the others; the exit status."""
    failed = [name for name, state in states.items() if state == "failed"]
    if failed:
        logging.error("failed, see failed.json in their folders: %s", checks.listed(failed))
    if left := [cell for cell in found if cell.name not in states]:
        logging.info("%d of %d runs lack weights or data: see --dry_run", len(left), len(found))
    model = schema.load(name).model
    if model and not options.model:
        weights, problem = cells_lib.find_weights(model, model.partition("/")[2], folders)
        options.model = "" if problem else weights or model
    files.at(folders.workdir).mkdir(parents=True, exist_ok=True)
    table.make(name, results.find(folders.workdir), options)
    return 1 if failed else 0


def run(found: Sequence[Cell], folders: Folders, **timing) -> dict[str, str] | None:
    """Runs all for which weights and data are at hand, together with others in the workdir.

    Args:
      timing: arguments of `work.Work`.

    Returns:
      {name: "done", "failed" or "blocked"} of what can be run; None when a signal asked to stop.
    """
    ready = [cell for cell in found if is_done(cell, folders) or not missing(cell, folders)]
    by_name = {cell.name: cell for cell in ready}
    return work.Work(
        names=list(by_name),
        folder=files.at(folders.workdir) / "claims",
        run=lambda name: _run(by_name[name], folders),
        is_done=lambda name: is_done(by_name[name], folders),
        failure=lambda name: _failure(by_name[name], folders),
        needs={n: [other.name for other in c.start.values()] for n, c in by_name.items()},
        **timing,
    ).share()


def _failure(cell: Cell, folders: Folders) -> int | None:
    """When a run failed last, in nanoseconds of its folder's clock."""
    with contextlib.suppress(FileNotFoundError):
        return (folders.of(cell) / "failed.json").stat().st_mtime_ns


def _run(cell: Cell, folders: Folders) -> str:
    config = cell.config.copy_and_resolve_references()
    for field, value in cells_lib.overrides(cell, folders).items():
        sweep_cells.set_field(config, field, value, f"run {cell.name}")
    logging.info("%s: %s", cell.name, cells_lib.command(cell, folders))
    one = sweep_cells.Cell(cell.name, {}, {}, config)
    rows = sweep.run_cells([one], files.at(folders.workdir))
    return "stopped" if rows is None else rows[0]["state"]


def seeds(text: str) -> list[int]:
    """Seeds with commas between them."""
    return [int(seed) for seed in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", default="", help="a table; without: lists them")
    parser.add_argument("--workdir", default="", help="folder of all runs, shared by machines")
    parser.add_argument("--dry_run", action="store_true", help="what it costs, what is missing")
    parser.add_argument("--only", default="", help="patterns of runs, such as 'albert/*-rte'")
    parser.add_argument(
        "--seeds", default=(), type=seeds, help="such as 0,1,2; default: the config's"
    )
    parser.add_argument("--device", default="a100", help=", ".join(training_cost.DEVICES))
    parser.add_argument("--utilisation", default=0.15, type=float, help="of its 16-bit peak")
    table.add_options(parser)
    return parser


if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])  # none: argparse reads them all
    command_line.quiet_libraries()
    sys.exit(main())
