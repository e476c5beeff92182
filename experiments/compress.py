r"""Compresses a pre-trained model and shows what was gained and lost.

    python -m experiments.compress --config=configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.compress --config=configs/compress.py --config.model=FOLDER \
        --config.budget=0.5 --workdir=runs/mine

For each variant of the config (dense, MPO at full bonds, MPO at a budget, low rank at the same
budget): compress, save, and, where the config has a `cell`, fine-tune what the variant trains and
measure, as a sweep over seeds and variants. Every finished part is kept in the workdir; started
again, the command resumes where it was. `--dry_run` prints what compressing a decoder would cost
and does nothing: it needs no workdir, and reads no more than the headers of the files.
"""

import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import app, flags, logging

from experiments import cells as cells_lib
from experiments import command_line, config_fields, decoders, launch, plans, sources, sweep
from experiments.render import comparison, frames
from mpojax import checks, compression, data, files, io, models, training
from mpojax.checks import field, flag, integer, mapping, number, one_of, sequence, text
from mpojax.methods import mpop
from mpojax.training import progress as progress_lib
from mpojax.training import workdir as workdir_lib


@checks.settings()
class Variant:
    """One row of the comparison, as the config describes it.

    Attributes:
      name, label: key of its files and text in tables and plots.
      matrices: regular expressions over matrix paths, or "all", as in the rules of
        `mpojax.compression.compress`; none leaves the model dense.
      settings: rule settings for all of them, fields of `mpojax.compression.MatrixRule`.
      budget: parameters of the whole model, a fraction of the dense count or a number.
      bond: cap for every bond.
      same_size_as: name of an earlier variant whose parameter count is the budget.
      allocation, keep_dense: how a budget is met, see `mpojax.compression.compress`.
      trainable: a name in `mpojax.methods.mpop.FILTERS`.
    """

    name: str = field(text())
    label: str = field(text())
    matrices: tuple[str, ...] = field(sequence(checks.expression()), ())
    settings: Mapping[str, Any] | None = field(mapping(checks.anything()), None)
    budget: float | None = field(number(above=0), None)
    bond: int | None = field(integer(1), None)
    same_size_as: str | None = field(text(), None)
    allocation: str = field(one_of("error", "first_order"), "error")
    keep_dense: bool = field(flag(), True)
    trainable: str = field(text(), "all")

    @property
    def needs_calibration(self) -> bool:
        """True if activations (or gradients) of texts decide something."""
        return bool((self.settings or {}).get("data_aware")) or self.allocation != "error"

    @property
    def rules(self) -> list[tuple[str, dict]]:
        """Compression rules as `compression.compress` takes them."""
        return [(pattern, dict(self.settings or {})) for pattern in self.matrices]

    @property
    def is_uncut(self) -> bool:
        """True if nothing limits the bonds."""
        limits = (self.budget, self.bond, self.same_size_as)
        own = {"bond", "bonds", "rank", "tolerance"} & set(self.settings or {})
        return bool(self.rules) and limits == (None, None, None) and not own


def plan(config: ml_collections.ConfigDict) -> str:
    """What the job would cost, of a decoder, from the headers of its files."""
    config_fields.check(config)
    stored = io.open_pretrained(sources.locate(config.model), check=False)
    return plans.plan(config, stored, _compared(config)).text(plans.Rates.measured())


def main(config: ml_collections.ConfigDict, folder: str) -> int:
    """The whole job; returns the exit status."""
    start = time.perf_counter()
    config_fields.check(config)
    # A folder with a run is compared first; a new one is claimed once everything has been checked,
    # so that a mistyped command leaves nothing behind.
    known = (files.at(folder) / "config.json").is_file()
    workdir = workdir_lib.Workdir(folder, config) if known else None
    if workdir is not None and workdir.finished:
        print((workdir.path / "summary.txt").read_text(encoding="utf-8"))
        return 0
    source = sources.locate(config.model)
    stored, names = io.open_pretrained(source), _compared(config)
    if isinstance(stored.abstract, models.LanguageModel) and {*names} <= {*compression.METHODS}:
        job = decoders.prepare(config, files.at(folder), stored, source, names)
        workdir = workdir or workdir_lib.Workdir(folder, config)
        print(f"model: {config.model}, {sources.describe(stored.abstract)}")
        print(decoders.run(job, workdir, start))
        return 0
    dense = stored.load(keep_16_bits=False, release=True)
    variants = read_variants(config)
    cells = training_cells(config, variants, files.at(folder).absolute())
    if cells and not isinstance(dense.config, models.EncoderConfig):
        raise ValueError(
            f"config.cell: a comparison fine-tunes encoders, and {config.model} is none. Take "
            "configs/compress.py: the result can be tuned by other experiments."
        )
    check_variants(dense, [variant for variant in variants if not variant.needs_calibration])
    calibration = calibrate(config, dense, variants, source)
    check_variants(dense, variants, calibration)
    workdir = workdir or workdir_lib.Workdir(folder, config)
    print(f"model: {config.model}, {sources.describe(dense)}")
    compressed = compress_all(workdir.path, dense, variants, calibration, source)
    curve = comparison.error_curve(workdir.path, dense, [variant.rules for variant in variants])
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


def compress_all(
    folder: pathlib.Path,
    dense: models.Model,
    variants: Sequence[Variant],
    calibration: compression.Calibration | None,
    source: str,
) -> dict[str, dict[str, Any]]:
    """Compresses and saves all variants; {name: record}. `source` has the tokenizer."""
    tokenizer = sources.tokenizer_folder(source)
    records: dict[str, dict[str, Any]] = {}
    for variant in variants:
        if variant.is_uncut:
            logging.warning(
                "variant %r has neither a budget nor a bond: the MPO is exact, and larger than the "
                "matrices",
                variant.name,
            )
        given = (calibration, tokenizer)
        records[variant.name] = compress_variant(folder, dense, variant, records, *given)
    return records


def results_of(cells: Sequence[cells_lib.Cell], folder: pathlib.Path) -> dict[str, list[dict]]:
    """{variant: results of its runs, one for each seed}."""
    results: dict[str, list[dict]] = {}
    for cell in cells:
        found = frames.read_result(folder / "cells" / cell.name)
        results.setdefault(cell.labels["variant"], []).append(found)
    return results


def _compared(config: ml_collections.ConfigDict) -> list[str]:
    # A command line gives several names as one text.
    return [name for entry in config.compare for name in str(entry).split(",")]


def read_variants(config: ml_collections.ConfigDict) -> list[Variant]:
    """The variants that `config.compare` names, in that order, checked; "mpo" and "svd" for none.

    Raises:
      ValueError: a name without an entry, an unknown field, or a reference to a later variant.
    """
    variants: list[Variant] = []
    for name in _compared(config) or ("mpo", "svd"):
        checks.check_names([name], config.variants, "config.compare")
        fields = {"name": name, **config.variants[name].to_dict()}
        variant = checks.from_mapping(Variant, fields, f"variant {name!r}")
        if variant.same_size_as not in (None, *(v.name for v in variants)):
            raise ValueError(
                f"variant {name!r}: same_size_as={variant.same_size_as!r} must name an earlier "
                "variant."
            )
        variants.append(variant)
    return variants


def training_cells(
    config: ml_collections.ConfigDict, variants: Sequence[Variant], folder: pathlib.Path
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


def calibrate(
    config: ml_collections.ConfigDict, dense: models.Model, variants: Sequence[Variant], source: str
) -> compression.Calibration | None:
    """Runs the calibration texts through the model, where a variant needs them.

    Raises:
      ValueError: a variant needs them and the config names none; or texts that do not fit.
    """
    needing = [variant.name for variant in variants if variant.needs_calibration]
    if not needing:
        return None
    settings = config.calibration
    if not settings.task:
        raise ValueError(
            f"variant {needing[0]!r} looks at activations: name texts, such as "
            "--config.calibration.task=sst2 --config.calibration.data_dir=DATA, or your own file "
            "(see mpojax.data.load_task)."
        )
    task = data.load_task(settings.task, settings.data_dir or None)
    split = task[settings.split].take(settings.examples)
    tokens = split.encode(sources.load_tokenizer(source)[0], settings.max_length)
    batches = data.EvalData(tokens, 32, lengths=(16, 32, 64, settings.max_length))
    first_order = [v.name for v in variants if v.allocation == "first_order"]
    if first_order and not isinstance(dense, models.ModelWithHead):
        raise ValueError(
            f"variant {first_order[0]!r}: allocation='first_order' weighs by the loss on the "
            f"calibration task, and {config.model} has no head for one: load a fine-tuned model, "
            "or leave allocation='error'."
        )
    loss = training.objective(task.kind) if first_order else None
    with progress_lib.progress(f"calibrating on {len(split)} examples of {task.name}") as advance:
        return compression.calibrate(
            dense,
            (_readable(dense, batches[index]) for index in range(len(batches))),
            loss=loss,
            progress=lambda done: advance(done, len(batches), ""),
        )


def _readable(dense: models.Model, batch: Mapping) -> Mapping:
    """A batch of texts for any model: the decoder of an encoder-decoder reads them, too."""
    if not isinstance(dense, models.EncoderDecoder):
        return batch
    ids, mask = (np.asarray(batch[name]) for name in ("input_ids", "attention_mask"))
    start = dense.config.decoder_start_id
    shifted = np.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=start)
    return {**batch, "decoder_input_ids": shifted, "decoder_attention_mask": mask}


def check_variants(
    dense: models.Model,
    variants: Sequence[Variant],
    calibration: compression.Calibration | None = None,
) -> None:
    """Checks rules, budgets and trainable sets against the model before anything is written.

    Raises:
      ValueError: rules or a budget that do not fit the model, or an unknown trainable set.
    """
    budgets = {variant.name: variant.budget for variant in variants}
    for variant in variants:
        mpop.check_trainable(variant.trainable)
        if variant.rules:
            # The size of another variant is known only later; a variant without a budget of its own
            # is no smaller than all matrices dense.
            budget = variant.budget
            if variant.same_size_as is not None:
                budget = budgets.get(variant.same_size_as) or 1.0
            compression.check_rules(
                dense,
                variant.rules,
                budget=budget,
                bond=variant.bond,
                calibration=calibration if variant.needs_calibration else None,
                allocation=variant.allocation,
            )


def compress_variant(
    folder: pathlib.Path,
    dense: models.Model,
    variant: Variant,
    earlier: Mapping[str, dict],
    calibration: compression.Calibration | None = None,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """Compresses, saves to `models/<name>`, returns the record: counts, bytes on disk, errors.

    The files of the folder `tokenizer` are saved with the model. The record of a variant that an
    earlier start has finished is read instead.
    """
    target = folder / "models" / variant.name
    record = folder / "compression" / f"{variant.name}.json"
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    files.remove_tree(target)  # of a start that was killed while saving
    model, report = dense, None
    if variant.rules:
        budget = variant.budget
        if variant.same_size_as is not None:
            budget = earlier[variant.same_size_as]["parameters"]
        with progress_lib.progress(f"compressing: {variant.label}") as advance:
            model, report = compression.compress(
                dense,
                variant.rules,
                budget=budget,
                bond=variant.bond,
                # For all variants: the report then has the errors of outputs next to those of
                # weights.
                calibration=calibration,
                allocation=variant.allocation,
                keep_dense=variant.keep_dense,
                progress=advance,
            )
        print(f"\n{variant.label}\n{report.table()}\n", flush=True)
        report.to_csv(folder / "compression" / f"{variant.name}.csv")
        report.plot(folder / "plots" / f"{variant.name}_roles.png")
    io.save_pretrained(model, target, tokenizer_from=tokenizer)
    total = sum(models.count_parameters(model).values())
    content = report.to_dict() if report else {"dense_parameters": total, "rows": []}
    content |= {
        "parameters": total,
        "relative_error": report.relative_error if report else 0.0,
        "relative_output_error": report.output_error if report else None,
        "stored_bytes": (target / "model.safetensors").stat().st_size,
    }
    files.write_atomic(record, json.dumps(content, indent=1) + "\n")
    return content


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
