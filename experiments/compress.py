r"""Compresses a pre-trained model and shows what was gained and lost.

    python -m experiments.compress --config=configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.compress --config=configs/compress.py --config.model=FOLDER \
        --config.budget=0.5 --workdir=runs/mine

For each variant of the config (dense, MPO at full bonds, MPO at a budget, low rank at the same
budget): compress, save, and, where the config names a task, fine-tune what the variant trains and
measure. Every finished part is kept in the workdir; started again, the job resumes where it was.
"""

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Mapping

import ml_collections
import numpy as np
from absl import logging

from experiments import comparison, config_fields, launch, sources, study_files
from mpojax import compression, data, io, models, training
from mpojax.methods import mpop
from mpojax.training import progress as progress_lib
from mpojax.training import workdir as workdir_lib


@dataclasses.dataclass(frozen=True)
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

    name: str
    label: str
    matrices: tuple[str, ...] = ()
    settings: Mapping = dataclasses.field(default_factory=dict)
    budget: float | None = None
    bond: int | None = None
    same_size_as: str | None = None
    allocation: str = "error"
    keep_dense: bool = True
    trainable: str = "all"

    @property
    def needs_calibration(self) -> bool:
        """True if activations (or gradients) of texts decide something."""
        return bool(self.settings.get("data_aware")) or self.allocation != "error"

    @property
    def rules(self) -> list[tuple[str, dict]]:
        """Compression rules as `compression.compress` takes them."""
        return [(pattern, dict(self.settings)) for pattern in self.matrices]


def main(config: ml_collections.ConfigDict, folder: str) -> int:
    """The whole job; returns the exit status."""
    start = time.perf_counter()
    config_fields.check(config)
    variants = read_variants(config)
    # A folder with a run is compared first; a new one is claimed once everything has been checked,
    # so that a mistyped command leaves nothing behind.
    known = (pathlib.Path(folder) / "config.json").is_file()
    workdir = workdir_lib.Workdir(folder, config) if known else None
    if workdir is not None and workdir.finished:
        print((workdir.path / "summary.txt").read_text(encoding="utf-8"))
        return 0
    source = sources.locate(config.model)
    dense = io.load_pretrained(source)
    check_task(config, dense)
    check_variants(dense, [variant for variant in variants if not variant.needs_calibration])
    calibration = calibrate(config, dense, variants, source)
    check_variants(dense, variants, calibration)
    arrays = comparison.load_arrays(config, source) if config.task else None
    workdir = workdir or workdir_lib.Workdir(folder, config)
    if arrays:
        workdir.check_data(comparison.fingerprints(arrays))
    print(f"model: {config.model}, {sources.describe(dense)}")
    for variant in filter(_is_uncut, variants):
        logging.warning(
            "variant %r has neither a budget nor a bond: its chains are exact, and larger than the "
            "matrices",
            variant.name,
        )

    compressed, tokenizer = {}, sources.tokenizer_folder(source)
    for variant in variants:
        compressed[variant.name] = compress_variant(
            workdir.path, dense, variant, compressed, calibration, tokenizer
        )
    curves = study_files.error_curves(workdir.path, dense, variants)

    results = {}
    if config.task:
        results = comparison.run(config, workdir, arrays, variants, compressed)
        if results is None:
            logging.info("stopped; start the same command again to resume")
            return 0
    summary = study_files.write_all(
        workdir, config, variants, compressed, results, curves, time.perf_counter() - start
    )
    print(summary)
    return 0


def _is_uncut(variant: Variant) -> bool:
    limits = (variant.budget, variant.bond, variant.same_size_as)
    own = {"bond", "bonds", "rank", "tolerance"} & set(variant.settings)
    return bool(variant.rules) and limits == (None, None, None) and not own


def read_variants(config: ml_collections.ConfigDict) -> list[Variant]:
    """The variants that `config.compare` names, in that order, checked.

    Raises:
      ValueError: a name without an entry, an unknown field, or a reference to a later variant.
    """
    known = {field.name for field in dataclasses.fields(Variant)} - {"name"}
    variants: list[Variant] = []
    # A command line gives several names as one text.
    for name in [name for entry in config.compare for name in str(entry).split(",")]:
        if name not in config.variants:
            raise ValueError(
                f"config.compare names {name!r}; config.variants has {sorted(config.variants)}."
            )
        fields = config.variants[name].to_dict()
        if unknown := sorted(set(fields) - known):
            raise ValueError(
                f"variant {name!r} has unknown fields {unknown}; known: {sorted(known)}."
            )
        variant = Variant(name, **fields)
        if variant.same_size_as not in (None, *(v.name for v in variants)):
            raise ValueError(
                f"variant {name!r}: same_size_as={variant.same_size_as!r} must name an earlier "
                "variant."
            )
        variants.append(variant)
    if not variants:
        raise ValueError("config.compare is empty; name at least one variant.")
    return variants


def calibrate(
    config, dense, variants: list[Variant], source: str
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


def _readable(dense, batch: Mapping) -> Mapping:
    """A batch of texts for any model: the decoder of an encoder-decoder reads them, too."""
    if not isinstance(dense, models.EncoderDecoder):
        return batch
    ids, mask = (np.asarray(batch[name]) for name in ("input_ids", "attention_mask"))
    start = dense.config.decoder_start_id
    shifted = np.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=start)
    return {**batch, "decoder_input_ids": shifted, "decoder_attention_mask": mask}


def check_task(config, dense) -> None:
    """Raises ValueError where the config names a task that it cannot train this model on."""
    if not config.task:
        return
    if "train_split" not in config:
        raise ValueError(
            f"config.task={config.task!r}: this config compresses and trains nothing. Take "
            "configs/quickstart.py, or give models/mpo of this run's folder to "
            "--config.init_checkpoint of experiments.finetune."
        )
    if not isinstance(dense.config, models.EncoderConfig):
        raise ValueError(
            f"config.task={config.task!r}: a comparison fine-tunes encoders, and {config.model} is "
            "none. Leave config.task empty: the result can be tuned by other experiments."
        )


def check_variants(dense, variants: list[Variant], calibration=None) -> None:
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
    dense,
    variant: Variant,
    earlier: dict,
    calibration=None,
    tokenizer: str | None = None,
):
    """Compresses, saves to `models/<name>` and returns (model, report fields).

    The files of the folder `tokenizer` are saved with the model.

    A variant that an earlier start has finished is loaded instead.
    """
    target = folder / "models" / variant.name
    record = folder / "compression" / f"{variant.name}.json"
    if record.is_file():
        model = io.load_pretrained(target) if variant.rules else dense
        return model, json.loads(record.read_text(encoding="utf-8"))
    shutil.rmtree(target, ignore_errors=True)  # of a start that was killed while saving
    if not variant.rules:
        io.save_pretrained(dense, target, tokenizer_from=tokenizer)
        return dense, study_files.write_record(record, target, dense, None)
    budget = variant.budget
    if variant.same_size_as is not None:
        budget = earlier[variant.same_size_as][1]["parameters"]
    with progress_lib.progress(f"compressing: {variant.label}") as advance:
        model, report = compression.compress(
            dense,
            variant.rules,
            budget=budget,
            bond=variant.bond,
            # For all variants: the report then has the errors of outputs next to those of weights.
            calibration=calibration,
            allocation=variant.allocation,
            keep_dense=variant.keep_dense,
            progress=advance,
        )
    io.save_pretrained(model, target, tokenizer_from=tokenizer)
    print(f"\n{variant.label}\n{report.table()}\n", flush=True)
    report.to_csv(folder / "compression" / f"{variant.name}.csv")
    report.plot(folder / "plots" / f"{variant.name}_roles.png")
    return model, study_files.write_record(record, target, model, report)


if __name__ == "__main__":
    launch.run(main, ("model", "matrices", "variants", "compare"))
