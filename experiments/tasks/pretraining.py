"""Pre-training of an encoder on a corpus: masked words and the order of sentences."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from configs.mpobert import pretraining as defaults
from experiments import sources
from experiments.tasks import loading
from mpojax import checks, compression, data, io, models, mpo, nn, training
from mpojax.methods import mpobert, mpop, protocol
from mpojax.methods import options as options_lib
from mpojax.methods.mpobert import start as mpobert_start
from mpojax.training.tasks import pretraining as objective

# Sizes of a model that a teacher decides.
_TEACHER_FIELDS = (
    *("hidden_size", "num_heads", "intermediate_size", "embedding_size", "vocab_size"),
    *("max_positions", "token_types", "activation", "norm_eps", "pad_id", "pooler_activation"),
)
# Defaults of the config: what a user did not set, a teacher may.
_UNSET = defaults.get_config().model.to_dict()
_ZERO_ALLOWED = ("adapter_rank", "dropout")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A model that is not built yet.

    Attributes:
      config, shapes: as `models.build` takes them.
      teacher: the model it starts from, or None.
    """

    config: models.EncoderConfig
    shapes: dict[str, mpo.MPOShape]
    teacher: models.Model | None

    def abstract(self) -> models.Model:
        """The model with shapes in the place of arrays."""
        return mpop.abstract(self.config, self.shapes)


class Pretraining(protocol.Task):
    """Rows of the corpus in `config.corpus`.

    Args:
      own: fields of the config.
    """

    can_only_evaluate = False

    def __init__(self, own: options_lib.Pretraining):
        self.own = own

    def check(self, options: options_lib.Options) -> None:
        own, start = self.own, self.own.start
        checks.check_clashes(
            {
                "config.corpus is empty: pass --config.corpus=FOLDER, made by python -m "
                "tools.prepare_corpus --text=TEXTS --out=FOLDER --vocab_size=8000": not own.corpus,
                "config.start.kind='teacher' needs config.start.teacher, a model folder": (
                    start["kind"] == "teacher" and not start["teacher"]
                ),
            }
        )
        if start["kind"] == "scratch":
            self._check_length(own.model["max_positions"])
        if start["central"] != "mean" and not str(start["central"]).isdigit():
            raise ValueError(
                f"config.start.central={start['central']!r} must be 'mean', or the number of one "
                "of the teacher's layers, from 0."
            )

    def _check_length(self, max_positions: int) -> None:
        if self.own.length > max_positions:
            raise ValueError(
                f"config.length={self.own.length} is more than model.max_positions="
                f"{max_positions}; shorten the rows, or take a model with more positions."
            )

    def setup(self, options: options_lib.Options) -> protocol.Setup:
        return self._setup(options, self.build)

    def dry_setup(self, options: options_lib.Options) -> protocol.Setup:
        """The same, but for the model's arrays, which are not made."""
        return self._setup(options, lambda planned, seed: planned.abstract())

    def _setup(self, options: options_lib.Options, build) -> protocol.Setup:
        own, seed = options.training, options.training.seed
        corpus = data.Corpus(self.own.corpus)
        planned = self.plan(corpus)
        check_mesh(own)
        train = data.PretrainData(
            corpus, own.batch_size, self.own.length, seed=seed, **self._rows()
        )
        dev = data.PretrainEvalData(
            corpus,
            own.eval_batch_size,
            self.own.length,
            seed=0,  # the same for every seed of training
            num_rows=self.own.eval_rows or None,
            **self._rows(),
        )
        model = build(planned, seed)
        self._log(options, model, train, corpus)
        return protocol.Setup(
            task=self,
            options=options,
            name="pretraining",
            model=model,
            tokenizer_folder=corpus.folder,
            loss=objective.pretraining_loss,
            train=train,
            dev=dev,
            num_dev_examples=dev.num_examples,
            evaluate=objective.evaluator(),
            metric="mlm_loss",
            sign=-1,
            extra=corpus,
        )

    def plan(self, corpus: data.Corpus) -> Plan:
        """The model of a config, for this corpus.

        Raises:
          ValueError: settings, corpus and teacher do not fit.
        """
        own, fields, teacher = self.own, dict(self.own.model), None
        if own.start["kind"] == "teacher":
            source = sources.locate(own.start["teacher"], "config.start.teacher")
            teacher = io.load_pretrained(source, pretraining_head=True)
            corpus.check_tokenizer(sources.load_tokenizer(source)[0])
            if teacher.shapes or teacher.config.adapters:
                teacher = compression.merge(teacher)
            for name in _TEACHER_FIELDS:
                # The config does not tell what was set to its default from what was not set.
                if fields.get(name) == _UNSET.get(name):
                    fields[name] = getattr(teacher.config, name)
        # 0 stands for the default of `mpobert.settings`.
        fields = {n: value for n, value in fields.items() if value != 0 or n in _ZERO_ALLOWED}
        fields.setdefault("vocab_size", corpus.vocab_size)
        corpus.check_vocab_size(fields["vocab_size"])
        self._check_length(fields["max_positions"])
        fields |= {"pad_id": corpus.special.pad, "dtype": own.dtype, "remat": own.remat}
        fields |= {"attention_dropout": fields["dropout"]}
        if not own.sop:
            fields |= {"num_labels": None, "pooling": "none"}
        model, shapes = mpobert.settings(**fields)
        if own.architecture != "mpobert":
            groups = None if own.architecture == "unshared" else model.layer_groups
            model = dataclasses.replace(model, layer_groups=groups, shared_roles=nn.ROLES)
            shapes = {}
        return Plan(model, shapes, teacher)

    def build(self, planned: Plan, seed: int) -> models.Model:
        """The model with its parameters at step 0."""
        start = self.own.start
        common = {"seed": seed, "adapter_stddev": start["adapter_stddev"]}
        if planned.shapes or planned.teacher is not None:
            common |= {"scaling": start["scaling"], "gauge": start["gauge"]}
        if planned.teacher is None:
            common |= {"init": start["init"], "stddev": start["stddev"]}
            return mpobert_start.from_scratch(planned.config, planned.shapes, **common)
        central = start["central"] if start["central"] == "mean" else int(start["central"])
        return mpobert_start.from_teacher(
            planned.teacher,
            planned.config,
            planned.shapes,
            central=central,
            num_teacher_layers=start["num_teacher_layers"],
            **common,
        )

    def _rows(self) -> dict[str, Any]:
        try:
            masking = data.Masking(**self.own.masking)
        except TypeError as error:
            raise ValueError(f"config.masking has an unknown field: {error}.") from error
        names = ("sop", "pack", "max_segments")
        return {"masking": masking} | {name: getattr(self.own, name) for name in names}

    def _log(self, options: options_lib.Options, model, train, corpus) -> None:
        loading.log_size(
            f"{options.training.variant or self.own.architecture}: {model.config.num_layers} "
            f"layers, hidden {model.config.hidden_size}",
            model,
        )
        start = self.own.start
        logging.info(
            "starts from %s", start["teacher"] if start["kind"] == "teacher" else "scratch"
        )
        logging.info(
            "corpus %s: %s tokens, %d rows of %d (%.1f %% padding), an epoch is %d steps",
            *(corpus.folder, f"{corpus.count('train'):,}", train.num_examples, self.own.length),
            *(100 * train.padding_share, train.steps_per_epoch),
        )

    def hooks(self, setup: protocol.Setup, model: models.Model) -> Sequence[training.Hook]:
        own, made = setup.options.training, []
        if own.samples_every:
            batch = setup.dev.rows(0, slice(0, own.eval_batch_size))
            tokenizer = setup.extra.tokenizer()
            made.append(objective.FilledMasks(batch, tokenizer, every=own.samples_every))
        if own.statistics_every:
            roles = training.roles(model)
            made.append(training.UpdateStatistics(roles, every=own.statistics_every))
        return made

    def model_flops(self, setup: protocol.Setup) -> int:
        """FLOPs of a step of the dense model, forward and backward once."""
        rows = setup.train.rows(0, slice(0, 1))
        batch = {name: np.shape(array) for name, array in rows.items()}
        return models.model_flops(
            setup.model.config,
            setup.options.training.batch_size,
            self.own.length,
            predictions=batch["mlm_positions"][1],
            sentences=batch.get("sop_positions", (1, 0))[1],
        )

    def report(self, setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
        steps, settings = int(result.state.step), result.state.model().config
        per_step = setup.options.training.batch_size * self.own.length
        speed = (result.extra.get("fit") or {}).get("steps_per_second")
        return {
            "architecture": self.own.architecture,
            "num_layers": settings.num_layers,
            "hidden_size": settings.hidden_size,
            "tokens": steps * per_step,
            "epochs": steps / setup.train.steps_per_epoch,
            "tokens_per_second": speed and speed * per_step,
            "model_flops_per_step": self.model_flops(setup),
        }

    def summary(self, result: Mapping[str, Any]) -> list[str]:
        speed = result["tokens_per_second"]
        lines = [
            f"{result['variant'] or result['architecture']}, {result['num_layers']} layers, "
            f"hidden {result['hidden_size']}, seed {result['seed']}: {result['total']:,} "
            "parameters",
            f"  {loading.metrics_line(result['metrics'])}, after {result['tokens']:,} tokens in "
            f"{result['steps']:,} steps ({result['epochs']:.2f} epochs)",
        ]
        if speed:
            lines.append(f"  {speed:,.0f} tokens/s, {result['seconds']:,.0f} s in all")
        return lines


def check_mesh(own: options_lib.Training) -> None:
    """Checks that batches can be split over the mesh of a config.

    Raises:
      ValueError: axes that do not multiply to the devices, or a batch that they do not divide.
    """
    made = training.make_mesh(dict(own.mesh))
    for size in (own.batch_size, own.eval_batch_size):
        training.sharding.local_rows(size, made)
    parts = training.sharding.batch_parts(made)
    if own.batch_size % (parts * own.grad_accum_steps):
        raise ValueError(
            f"config.batch_size={own.batch_size} rows in config.grad_accum_steps="
            f"{own.grad_accum_steps} micro-batches cannot be split over the mesh axes data x fsdp "
            f"x expert of size {parts}; make it a multiple of {parts * own.grad_accum_steps}."
        )
