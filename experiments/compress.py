r"""Compresses a pre-trained model and shows what was gained and lost.

    python -m experiments.compress --config=configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.compress --config=configs/compress.py --config.model=FOLDER \
        --config.budget=0.5 --workdir=runs/mine

A decoder is compressed by each method of `config.compare` at each size: low rank by what the model
does on calibration texts, next to published methods. Perplexity, where asked for after healing, and
speed are measured. Any other model becomes each variant of the config (dense, MPO at full bonds,
MPO at a budget, low rank of the same size): compress, save, and, where the config has a `cell`,
fine-tune what the variant trains and measure, as a sweep over seeds and variants.

Every finished part is kept in the workdir; started again, the command resumes where it was.
`--dry_run` prints what compressing a decoder would cost and does nothing: it needs no workdir, and
reads no more than the headers of the files.
"""

import pathlib
import sys
import time
from collections.abc import Sequence

import ml_collections
from absl import app, flags, logging

from experiments import cells as cells_lib
from experiments import command_line, config_fields, decoders, launch, plans, runs, sources, sweep
from experiments import variants as variants_lib
from experiments.render import comparison, frames
from mpojax import checks, compression, files, io, models, training

_TASK = "--config.calibration.task='file:train=FILE.tsv;dev=train;text=COLUMN;label=COLUMN'"
# Fields that nothing reads where variants are compared: (default, what to do).
_OF_DECODERS = {
    "calibration.texts": ("python_docs", f"texts come from a task here: {_TASK}"),
    "evaluation.texts": ("python_docs", f"development texts come from a task here: {_TASK}"),
    "heal.steps": (0, "tune the result by experiments.train"),
}


def plan(config: ml_collections.ConfigDict) -> str:
    """What the job would cost, of a decoder, from the headers of its files."""
    config_fields.check(config)
    names = variants_lib.compared(config)
    source = sources.locate(config.model)
    stored = io.open_pretrained(source, check=False)
    planned = plans.plan(config, stored, names, in_memory=source.endswith(".gguf"))
    return planned.text(plans.Rates.measured())


def main(config: ml_collections.ConfigDict, folder: str) -> int:
    """The whole job; returns the exit status."""
    start = time.perf_counter()
    config_fields.check(config)
    # A folder with a run is compared first; a new one is claimed once everything has been checked,
    # so that a mistyped command leaves nothing behind.
    workdir = runs.known(folder, config)
    if workdir is not None and workdir.finished:
        print((workdir.path / "summary.txt").read_text(encoding="utf-8"))
        return 0
    names = variants_lib.compared(config)  # a slip in them is told before a model is looked for
    source = sources.locate(config.model)
    stored = io.open_pretrained(source)
    if not models.predicts_next(stored.abstract) or not {*names} <= {*compression.METHODS}:
        return _of_variants(config, folder, workdir, stored, source, start)
    setup = decoders.set_up(config, files.at(folder), stored, source, names)
    workdir = workdir or training.Workdir(folder, config)
    setup.check_texts(workdir)
    print(f"model: {config.model}, {sources.describe(stored.abstract)}")
    print(decoders.run(setup, workdir, start))
    return 0


def _of_variants(config, folder: str, workdir, stored, source: str, start: float) -> int:
    """`main` for the variants of a config."""
    if config.get("budgets"):
        raise ValueError(
            f"config.budgets={tuple(config.budgets)} is for decoders and their methods: one size "
            "at a time here, such as --config.budget=0.6."
        )
    values = dict(config_fields.leaves(config))
    checks.check_clashes(
        {
            f"config.{name}={values[name]!r} is for decoders and their methods; {advice}": (
                values[name] != unread
            )
            for name, (unread, advice) in _OF_DECODERS.items()
            if name in values
        }
    )
    dense = stored.load(keep_16_bits=False, release=True)
    variants = variants_lib.read_variants(config)
    cells = training_cells(config, variants, files.at(folder).absolute())
    if cells and not isinstance(dense.config, models.EncoderConfig):
        raise ValueError(
            f"config.cell: a comparison fine-tunes encoders, and {config.model} is none. Take "
            "configs/compress.py: the result can be tuned by other experiments."
        )
    variants_lib.check_variants(config, dense, variants)
    known = variants_lib.calibrate(config, dense, variants, source)
    if known is not None:
        variants_lib.check_variants(config, dense, variants, known)
    workdir = workdir or training.Workdir(folder, config)
    print(f"model: {config.model}, {sources.describe(dense)}")
    given = (config, workdir.path, dense, known, sources.tokenizer_folder(source))
    compressed = variants_lib.compressed(variants_lib.Setup(*given), variants)
    chains = [variant.rules for variant in variants if variant.method is None]
    curve = comparison.error_curve(workdir.path, dense, chains)
    rows = sweep.run_cells(cells, workdir.path / "cells") if cells else []
    if rows is None:
        return 0
    if failed := [row["cell"] for row in rows if row["state"] == "failed"]:
        logging.error("failed: %s; see failed.json in cells/", "; ".join(failed))
        return 1
    results = results_of(cells, workdir.path)
    seconds = time.perf_counter() - start
    print(comparison.write(workdir, config, variants, compressed, results, curve, seconds))
    return 0


def results_of(cells: Sequence[cells_lib.Cell], folder: pathlib.Path) -> dict[str, list[dict]]:
    """{variant: results of its runs, one for each seed}."""
    results: dict[str, list[dict]] = {}
    for cell in cells:
        found = frames.read_result(folder / "cells" / cell.name)
        results.setdefault(cell.labels["variant"], []).append(found)
    return results


def training_cells(
    config: ml_collections.ConfigDict,
    variants: Sequence[variants_lib.Variant],
    folder: pathlib.Path,
) -> list[cells_lib.Cell]:
    """The runs that tune the variants, seed by seed, checked; none where the config has no `cell`.

    Raises:
      ValueError: a field of the cell that is wrong, or data that are not there.
    """
    if "cell" not in config:
        return []
    axis = {
        variant.name: {
            "variant": variant.name,
            "model": str(folder / "models" / variant.name),
            "trainable": variant.trainable,
        }
        for variant in variants
    }
    study = ml_collections.ConfigDict({"cell": config.cell, "seeds": config.seeds})
    study.axes = (("seed", "seeds"), ("variant", axis))
    cells = cells_lib.expand(study)
    sweep.check_cells(cells, folder, models=())
    return cells


def command(argv: list[str]) -> None:
    """Does what the flags say, or says what it would cost."""
    only_cost = flags.FLAGS.dry_run
    fields = ("model", "matrices", "variants", "compare")
    with launch.session(fields, needs_workdir=not only_cost) as given:
        if only_cost:
            print(plan(given[0]))
        elif status := main(*given):
            sys.exit(status)


if __name__ == "__main__":
    flags.DEFINE_bool("dry_run", False, "Print what compressing a decoder would cost; do nothing.")
    flags.mark_flag_as_required("config")
    app.run(command, flags_parser=command_line.parse)
