"""Setup of a pre-training config: settings of the model, its start, its data."""

import dataclasses

import jax
import ml_collections

from configs.mpobert import pretraining as defaults
from experiments import config_fields, sources
from mpojax import compression, data, io, models, mpo, nn, training
from mpojax.methods import mpobert
from mpojax.methods.mpobert import start as mpobert_start

# Fields of a model that a teacher decides.
_TEACHER_FIELDS = (
    *("hidden_size", "num_heads", "intermediate_size", "embedding_size", "vocab_size"),
    *("max_positions", "token_types", "activation", "norm_eps", "pad_id", "pooler_activation"),
)
# Defaults of the config: what a user did not set, a teacher may.
_UNSET = defaults.get_config().model.to_dict()


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


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked without corpus or teacher.

    Raises:
      ValueError: a field that is wrong whatever they are.
    """
    config_fields.check(config)
    for name, value, allowed in (
        ("architecture", config.architecture, defaults.ARCHITECTURES),
        ("start.kind", config.start.kind, defaults.STARTS),
        ("start.scaling", config.start.scaling, mpobert_start.SCALINGS),
        ("start.init", config.start.init, mpobert_start.INITS),
        ("start.gauge", config.start.gauge, mpo.GAUGES),
    ):
        if value not in allowed:
            raise ValueError(f"config.{name}={value!r} must be one of {', '.join(allowed)}.")
    if not config.corpus:
        raise ValueError(
            "config.corpus is empty: pass --config.corpus=FOLDER, made by python -m "
            "tools.prepare_corpus --text=TEXTS --out=FOLDER --vocab_size=8000."
        )
    if config.start.kind == "teacher" and not config.start.teacher:
        raise ValueError("config.start.kind='teacher' needs config.start.teacher, a model folder.")
    if config.start.kind == "scratch":
        _check_length(config, config.model.max_positions)
    central = config.start.central
    if central != "mean" and not str(central).isdigit():
        raise ValueError(
            f"config.start.central={central!r} must be 'mean', or the number of one of the "
            "teacher's layers, from 0."
        )


def _check_length(config: ml_collections.ConfigDict, max_positions: int) -> None:
    if config.length > max_positions:
        raise ValueError(
            f"config.length={config.length} is more than model.max_positions={max_positions}; "
            "shorten the rows, or take a model with more positions."
        )


def plan(config: ml_collections.ConfigDict, corpus: data.Corpus) -> Plan:
    """The model of a config, for this corpus.

    Raises:
      ValueError: settings, corpus and teacher do not fit.
    """
    fields = config.model.to_dict()
    teacher = None
    if config.start.kind == "teacher":
        source = sources.locate(config.start.teacher, "config.start.teacher")
        teacher = io.load_pretrained(source, pretraining_head=True)
        corpus.check_tokenizer(sources.load_tokenizer(source)[0])
        if teacher.shapes or teacher.config.adapters:
            teacher = compression.merge(teacher)
        fields = _with_teacher(fields, teacher.config)
    fields = {name: value for name, value in fields.items() if value != 0 or name in _ZERO_ALLOWED}
    fields.setdefault("vocab_size", corpus.vocab_size)
    corpus.check_vocab_size(fields["vocab_size"])
    _check_length(config, fields["max_positions"])
    fields |= {"pad_id": corpus.special.pad, "dtype": config.dtype, "remat": config.remat}
    fields |= {"attention_dropout": fields["dropout"]}
    if not config.sop:
        fields |= {"num_labels": None, "pooling": "none"}
    model, shapes = mpobert.settings(**fields)
    if config.architecture != "mpobert":
        groups = None if config.architecture == "unshared" else model.layer_groups
        model = dataclasses.replace(model, layer_groups=groups, shared_roles=nn.ROLES)
        shapes = {}
    return Plan(model, shapes, teacher)


_ZERO_ALLOWED = ("adapter_rank", "dropout")


def _with_teacher(fields: dict, teacher: models.EncoderConfig) -> dict:
    """The teacher's sizes where the config leaves its own defaults."""
    for name in _TEACHER_FIELDS:
        if fields.get(name) == _UNSET.get(name):
            fields[name] = getattr(teacher, name)
    return fields


def build(config: ml_collections.ConfigDict, planned: Plan) -> models.Model:
    """The model with its parameters at step 0."""
    start = config.start
    common = {"seed": config.seed, "adapter_stddev": start.adapter_stddev}
    if planned.shapes or planned.teacher is not None:
        common |= {"scaling": start.scaling, "gauge": start.gauge}
    if planned.teacher is None:
        common |= {"init": start.init, "stddev": start.stddev}
        return mpobert_start.from_scratch(planned.config, planned.shapes, **common)
    central = start.central if start.central == "mean" else int(start.central)
    return mpobert_start.from_teacher(
        planned.teacher,
        planned.config,
        planned.shapes,
        central=central,
        num_teacher_layers=start.num_teacher_layers,
        **common,
    )


def mesh(config: ml_collections.ConfigDict) -> jax.sharding.Mesh:
    """The mesh of a config, over which its batches can be split.

    Raises:
      ValueError: axes that do not multiply to the devices, or a batch that they do not divide.
    """
    made = training.make_mesh(config.mesh.to_dict())
    for size in (config.batch_size, config.eval_batch_size):
        training.sharding.local_rows(size, made)
    parts = training.sharding.batch_parts(made)
    if config.batch_size % (parts * config.grad_accum_steps):
        raise ValueError(
            f"config.batch_size={config.batch_size} rows in "
            f"config.grad_accum_steps={config.grad_accum_steps} micro-batches cannot be split "
            f"over the mesh axes data x fsdp x expert of size {parts}; make it a "
            f"multiple of {parts * config.grad_accum_steps}."
        )
    return made


def train_data(config: ml_collections.ConfigDict, corpus: data.Corpus) -> data.PretrainData:
    """Training rows by the config."""
    return data.PretrainData(
        corpus, config.batch_size, config.length, seed=config.seed, **_rows(config)
    )


def eval_data(config: ml_collections.ConfigDict, corpus: data.Corpus) -> data.PretrainEvalData:
    """Development rows by the config; the same for every seed of training."""
    return data.PretrainEvalData(
        corpus,
        config.eval_batch_size,
        config.length,
        seed=0,
        num_rows=config.eval_rows or None,
        **_rows(config),
    )


def _rows(config) -> dict:
    try:
        masking = data.Masking(**config.masking.to_dict())
    except TypeError as error:
        raise ValueError(f"config.masking has an unknown field: {error}.") from error
    return {
        "masking": masking,
        "sop": config.sop,
        "pack": config.pack,
        "max_segments": config.max_segments,
    }
