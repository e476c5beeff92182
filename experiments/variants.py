"""Variants of a comparison: ways to compress one model, as a config describes them."""

import functools
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import logging

from experiments import decoders, runs, sources
from mpojax import checks, compression, data, files, io, models, training
from mpojax.checks import field, flag, integer, mapping, number, one_of, sequence, text
from mpojax.methods import mpop
from mpojax.training import progress as progress_lib


@checks.settings()
class Variant:
    """One row of the comparison, as the config describes it.

    Attributes:
      name: key of its files.
      label: text in tables and plots.
      matrices: regular expressions over matrix paths, or "all", as in the rules of
        `mpojax.compression.compress`; none leaves the model dense.
      settings: rule settings for all of them, fields of `mpojax.compression.MatrixRule`.
      method: a key of `mpojax.compression.METHODS`, in place of settings.
      budget: a size as `config.budget`: a fraction of what `budget_of` says, or parameters of the
        whole model.
      bond: cap for every bond.
      same_size_as: name of an earlier variant whose parameter count is the budget.
      allocation: how a budget is met, see `mpojax.compression.compress`.
      keep_dense: matrices whose MPO would save nothing may stay dense.
      trainable: a name in `mpojax.methods.mpop.FILTERS`.
    """

    name: str = field(text())
    label: str = field(text())
    matrices: tuple[str, ...] = field(sequence(checks.expression()), ())
    settings: Mapping[str, Any] | None = field(mapping(checks.anything()), None)
    method: str | None = field(one_of(*compression.METHODS), None)
    budget: float | None = field(number(above=0), None)
    bond: int | None = field(integer(1), None)
    same_size_as: str | None = field(text(), None)
    allocation: str = field(one_of("error", "first_order"), "error")
    keep_dense: bool = field(flag(), True)
    trainable: str = field(text(), "all")

    def __post_init__(self):
        name, how = f"variant {self.name!r}", f"method={self.method!r} chooses ranks by a size"
        sizes = self.budget, self.same_size_as
        checks.check_clashes(
            {
                f"{name}: {how}; leave settings out": bool(self.method and self.settings),
                f"{name}: {how}; leave bond={self.bond} out": self.method and self.bond is not None,
                f"{name}: {how}: give it a budget, or same_size_as": (
                    self.method and sizes == (None, None)
                ),
            }
        )

    @property
    def needs_calibration(self) -> bool:
        """True if activations (or gradients) of texts decide something."""
        by_rules = bool((self.settings or {}).get("data_aware")) or self.allocation != "error"
        return by_rules or self.method is not None

    @property
    def rules(self) -> list[tuple[str, dict]]:
        """Compression rules as `compression.compress` takes them; a method is for layers alone."""
        if self.method and tuple(self.matrices) == ("all",):
            return [("layers", {})]
        return [(pattern, dict(self.settings or {})) for pattern in self.matrices]

    @property
    def is_uncut(self) -> bool:
        """True if nothing limits the bonds."""
        limits = (self.budget, self.bond, self.same_size_as)
        own = {"bond", "bonds", "rank", "tolerance"} & set(self.settings or {})
        return bool(self.rules) and limits == (None, None, None) and not own


class Known(NamedTuple):
    """What is known of the calibration texts.

    Attributes:
      calibration: statistics of the model on them.
      batches: the texts that these are of.
      held_out: texts that method "best" chooses by.
      test: other texts, by which the sentence vectors of encoders are compared.
    """

    calibration: compression.Calibration
    batches: list[Mapping]
    held_out: list[Mapping]
    test: list[Mapping]


def compared(config: ml_collections.ConfigDict) -> list[str]:
    """Names in `config.compare`; a command line gives several as one text.

    Raises:
      ValueError: neither a method nor one of `config.variants`.
    """
    names = [name for entry in config.compare for name in str(entry).split(",")]
    checks.check_names(names, {**config.variants, **compression.METHODS}, "config.compare")
    return names


def read_variants(config: ml_collections.ConfigDict) -> list[Variant]:
    """The variants that `config.compare` names, in that order, checked; "mpo" and "svd" for none.

    Raises:
      ValueError: a name without an entry, an unknown field, or a reference to a later variant.
    """
    variants: list[Variant] = []
    for name in compared(config) or ("mpo", "svd"):
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


def calibrate(
    config: ml_collections.ConfigDict, dense: models.Model, variants: Sequence[Variant], source: str
) -> Known | None:
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
    tokenizer = sources.load_tokenizer(source)[0]

    def batches(split: str) -> list[Mapping]:
        tokens = task[split].take(settings.examples).encode(tokenizer, settings.max_length)
        found = data.EvalData(tokens, 32, lengths=(16, 32, 64, settings.max_length))
        return [_readable(dense, found[index]) for index in range(len(found))]

    options = _kinds(config, dense, variants, task.kind)
    learned, held_out = batches(settings.split), []
    if any(variant.method == "best" for variant in variants):
        learned, held_out = compression.split_held_out(learned)
    with progress_lib.progress(f"calibrating on texts of {task.name}") as advance:
        calibration = compression.calibrate(
            dense, learned, **options, progress=lambda done: advance(int(done), len(learned), "")
        )
    is_encoder = isinstance(dense.config, models.EncoderConfig)
    test = batches(task.dev_split) if is_encoder and task.dev_split in task.splits else []
    return Known(calibration, learned, held_out, test)


def _kinds(config, dense: models.Model, variants: Sequence[Variant], kind: str) -> dict[str, Any]:
    """What is measured besides covariances, as `compression.calibrate` takes it."""
    first_order = [v.name for v in variants if v.allocation == "first_order"]
    if first_order and not isinstance(dense, models.ModelWithHead):
        raise ValueError(
            f"variant {first_order[0]!r}: allocation='first_order' weighs by the loss on the "
            f"calibration task, and {config.model} has no head for one: load a fine-tuned model, "
            "or leave allocation='error'."
        )
    by_loss = [v.name for v in variants if v.method and compression.METHODS[v.method].by_loss]
    if first_order and by_loss:
        raise ValueError(
            f"variants {first_order[0]!r} and {by_loss[0]!r} need gradients of different losses: "
            "compare them in two runs."
        )
    loss = training.objective(kind) if first_order else None
    return {"loss": loss, "curvature": bool(by_loss)}


def _readable(dense: models.Model, batch: Mapping) -> Mapping:
    """A batch of texts for any model: the decoder of an encoder-decoder reads them, too."""
    if not isinstance(dense, models.EncoderDecoder):
        return batch
    ids, mask = (np.asarray(batch[name]) for name in ("input_ids", "attention_mask"))
    start = dense.config.decoder_start_id
    shifted = np.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=start)
    return {**batch, "decoder_input_ids": shifted, "decoder_attention_mask": mask}


def check_variants(
    config: ml_collections.ConfigDict,
    dense: models.Model,
    variants: Sequence[Variant],
    known: Known | None = None,
) -> None:
    """Checks rules, budgets and trainable sets against the model before anything is written.

    Without `known` what can be checked without the calibration texts, with it what needs them.

    Raises:
      ValueError: rules or a budget that do not fit the model, or an unknown trainable set.
    """
    budgets = {variant.name: size_of(config, dense, variant) for variant in variants}
    for variant in variants:
        mpop.check_trainable(variant.trainable)
        needs = variant.needs_calibration
        is_due = needs if known else variant.method or not needs
        if not (variant.rules and is_due):
            continue
        # The size of another variant is known only later; a variant without a budget of its own
        # is no smaller than all matrices dense.
        budget = budgets[variant.name]
        if variant.same_size_as is not None:
            budget = budgets.get(variant.same_size_as) or 1.0
        given = {"bond": variant.bond, "allocation": variant.allocation}
        if variant.method:
            given = {"method": variant.method, "batches": known and known.batches}
        calibration = known and known.calibration
        compression.check_rules(
            dense, variant.rules, budget=budget, calibration=calibration, **given
        )


def size_of(
    config: ml_collections.ConfigDict, dense: models.Model, variant: Variant
) -> float | None:
    """The budget of a variant as `compression.compress` takes it."""
    budget = variant.budget
    if budget is None or budget > 1 or config.get("budget_of", "model") == "model":
        return budget
    sizes = dense.config.matrix_sizes()
    matched = sum(math.prod(sizes[p]) for p in compression.matched(dense, variant.rules))
    total = sum(models.count_parameters(dense).values())
    return decoders.size_of(config, budget, total, matched)


class Setup(NamedTuple):
    """What all variants of a run share.

    Attributes:
      config, folder: of the run.
      dense: the model.
      known: of the calibration texts; None where no variant needs them.
      tokenizer: folder whose tokenizer is saved with every model, or None.
    """

    config: ml_collections.ConfigDict
    folder: pathlib.Path
    dense: models.Model
    known: Known | None
    tokenizer: str | None


def compressed(setup: Setup, variants: Sequence[Variant]) -> dict[str, dict[str, Any]]:
    """Compresses and saves all variants, to `models/`; {name: record}: counts, bytes, errors.

    The record of a variant that an earlier start has finished is read instead.
    """
    records: dict[str, dict[str, Any]] = {}
    for variant in variants:
        if variant.is_uncut:
            logging.warning(
                "variant %r has neither a budget nor a bond: the MPO is exact, and larger than the "
                "matrices",
                variant.name,
            )
        record = setup.folder / "compression" / f"{variant.name}.json"
        made = functools.partial(_compressed, setup, variant, records)
        records[variant.name] = runs.kept(record, made)
    return records


def _compressed(setup: Setup, variant: Variant, earlier: Mapping[str, dict]) -> dict[str, Any]:
    config, folder, dense, known, tokenizer = setup
    target = folder / "models" / variant.name
    files.remove_tree(target)  # of a start that was killed while saving
    start, model, report = time.perf_counter(), dense, None
    if variant.rules:
        budget = size_of(config, dense, variant)
        if variant.same_size_as is not None:
            budget = earlier[variant.same_size_as]["parameters"]
        with progress_lib.progress(f"compressing: {variant.label}") as advance:
            model, report = compression.compress(
                dense,
                variant.rules,
                budget=budget,
                # For all variants: the report then has the errors of outputs next to those of
                # weights.
                calibration=known and known.calibration,
                **_way(variant, known),
                progress=advance,
            )
        print(f"\n{variant.label}\n{report.table()}\n", flush=True)
        report.to_csv(folder / "compression" / f"{variant.name}.csv")
        report.plot(folder / "plots" / f"{variant.name}_roles.png")
    seconds = time.perf_counter() - start
    io.save_pretrained(model, target, tokenizer_from=tokenizer)
    total = sum(models.count_parameters(model).values())
    content = report.to_dict() if report else {"dense_parameters": total, "rows": []}
    content |= {
        "parameters": total,
        "relative_error": report.relative_error if report else 0.0,
        "relative_output_error": report.output_error if report else None,
        "stored_bytes": (target / "model.safetensors").stat().st_size,
        "seconds": seconds,
    }
    if known is not None and known.test:
        content["similarity"] = models.similarity(dense, model, known.test)
    return content


def _way(variant: Variant, known: Known | None) -> dict[str, Any]:
    """How a variant is compressed, as `compression.compress` takes it."""
    if variant.method is None:
        names = ("bond", "allocation", "keep_dense")
        return {name: getattr(variant, name) for name in names}
    is_layerwise = compression.METHODS[variant.method].layerwise
    batches = known.batches if is_layerwise else None
    return {"method": variant.method, "batches": batches, "held_out": known.held_out}
