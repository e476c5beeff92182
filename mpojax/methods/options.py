"""Fields of a run's config, one dataclass a concern, with the values that each may have.

A config is read once, by `read`; from there on the code sees these dataclasses. `FIELDS` has the
allowed values of all fields, by which command lines are checked and `--help` explains.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ml_collections

from mpojax import checks, compression, models, mpo, nn
from mpojax.checks import field, integer, mapping, null, number, one_of, pair, sequence
from mpojax.methods.mpobert import start as mpobert_start
from mpojax.models.config import COMPUTE_DTYPES
from mpojax.training import sharding

T = TypeVar("T")

COUNT = integer(1)
OR_ALL = integer(0).noted("0: all")
EVERY = integer(0).noted("in steps; 0: never, or at the end alone")
FRACTION = number(0, 1)
PATTERNS = sequence(checks.expression())
RULES = sequence(pair(checks.expression(), mapping(checks.anything())))
BOND = integer(1) | null()
FLAG, TEXT, ANY = checks.flag(), checks.text(), checks.anything()

# When adapters come in: MPOBERT's algorithm 2 has them in pre-training, its section 3.2.2 offers
# them to the tasks that need layers of their own.
ADAPTER_PHASES = ("fine_tuning", "pre_training")
ALLOCATIONS = ("error", "first_order")
FORMS = ("dense", *compression.EXPERT_FORMS)
# What layers of a pre-trained model share: central cores (and biases, norms), all, nothing.
SHARING = ("mpobert", "shared", "unshared")
STARTS = ("scratch", "teacher")
HELD_OUT = "held_out"  # as `dev_split`


def group(**parts: checks.Allowed) -> Any:
    """Field of fields: a mapping, with the values that some of its entries may have."""
    return dataclasses.field(default_factory=dict, metadata={"parts": parts})


@checks.settings("config.")
class Model:
    """The model of a run, as it is loaded or made.

    Attributes:
      architecture: a preset of `mpojax.models`: the row of a table it belongs to.
      model: folder, hub id, `package:NAME/SUBFOLDER` or .gguf file; "": fresh, of `model_config`.
      tokenizer: folder of the tokenizer, where `model` has none.
      init_checkpoint: of the weights (and the head, where it fits the task), if not `model`.
      model_config: sizes of a fresh decoder or encoder-decoder.
      num_layers_kept: of a decoder, the first ones; 0: all.
      pooling: of sentence vectors; "": the model's own.
      dropout: of all kinds.
      dtype: of the computation.
      remat: recompute layers in the backward pass.
      experts: fields of `compression.ExpertRule`, and `blocks`, the pattern of these.
    """

    architecture: str = field(one_of("", *models.PRESETS), "")
    model: str = field(TEXT, "")
    tokenizer: str = field(TEXT, "")
    init_checkpoint: str = field(TEXT, "")
    model_config: Mapping[str, Any] = group()
    num_layers_kept: int = field(OR_ALL, 0)
    pooling: str = field(TEXT, "")
    dropout: float = field(number(-1, 1).noted("negative: as the model has it"), -1.0)
    dtype: str = field(one_of(*COMPUTE_DTYPES), "float32")
    remat: bool = field(FLAG, False)
    experts: Mapping[str, Any] = group(
        form=one_of(*FORMS),
        number=COUNT,
        k=COUNT,
        bond=BOND,
        cores=integer(2),
        capacity_factor=number(above=0) | null(),
    )

    @property
    def expert_rules(self) -> list[tuple[str, dict]]:
        """Rules as `compression.add_experts` takes them; none for a dense model."""
        fields = {"form": "dense"} | dict(self.experts)
        blocks = fields.pop("blocks", None)
        return [] if fields["form"] == "dense" else [(blocks, fields)]

    def __post_init__(self):
        if self.model_config and not self.tokenizer:
            raise ValueError(
                "config.model_config needs config.tokenizer, a folder with tokenizer.json."
            )
        for rule in self.expert_rules:
            compression.parse_rule(rule, compression.ExpertRule)


@checks.settings("config.")
class Compression:
    """How the model is compressed, and the adapters that it gets.

    Attributes:
      matrices, settings: patterns of matrix paths, and one set of settings for all of them, or
      rules: (pattern, settings) pairs.
      budget: fraction of the dense parameters, or a number of parameters.
      bond: cap of every bond.
      keep_dense: whether a budget may leave matrices dense.
      allocation, calibration_examples: training examples whose activations data-aware settings, and
        their gradients the allocation "first_order", look at.
      adapters: (pattern, settings) pairs; `adapter_phase` says whether they are new.
    """

    matrices: tuple[str, ...] = field(PATTERNS, ())
    settings: Mapping[str, Any] = group()
    rules: tuple = field(RULES, ())
    budget: float | None = field(number(above=0), None)
    bond: int | None = field(integer(1), None)
    keep_dense: bool = field(FLAG, True)
    allocation: str = field(one_of(*ALLOCATIONS), "error")
    calibration_examples: int = field(integer(0), 0)
    adapters: tuple = field(RULES, ())
    adapter_phase: str = field(one_of(*ADAPTER_PHASES), "fine_tuning")

    @property
    def compression_rules(self) -> list[tuple[str, dict]]:
        """Rules as `compression.compress` takes them; none for a dense model."""
        if self.rules:
            return [(pattern, dict(settings)) for pattern, settings in self.rules]
        return [(pattern, dict(self.settings)) for pattern in self.matrices]

    @property
    def adapter_rules(self) -> list[tuple[str, dict]]:
        """Rules as `compression.add_adapters` takes them."""
        return [(pattern, dict(settings)) for pattern, settings in self.adapters]

    def __post_init__(self):
        rules = self.compression_rules
        parsed = [compression.parse_rule(rule)[1] for rule in rules]
        for name in ("budget", "bond", "calibration_examples", "settings"):
            if getattr(self, name) and not rules:
                raise ValueError(
                    f"config.{name}={getattr(self, name)!r} has no matrices to work on: name them "
                    "in config.matrices or config.rules."
                )
        needs_texts = any(each.data_aware for each in parsed) or self.allocation == "first_order"
        checks.check_clashes(
            {
                "config.rules takes the place of config.matrices and settings: give one": (
                    self.rules and (self.matrices or self.settings)
                ),
                "config.budget and config.bond exclude each other; give one": (
                    self.budget is not None and self.bond is not None
                ),
                "data_aware settings and allocation='first_order' look at activations: give "
                "config.calibration_examples, such as 1024": (
                    needs_texts and not self.calibration_examples
                ),
            }
        )
        for rule in self.adapter_rules:
            compression.parse_rule(rule, compression.AdapterRule)


@checks.settings("config.")
class Data:
    """What a run is trained and evaluated on.

    Attributes:
      task: of GLUE, another name of `mpojax.data.load_task`, or "file:..." of your own.
      tasks: several at once, in place of `task`.
      dataset, dev_dataset, test_dataset: plain texts to train, evaluate, and test once on.
      data_dir: folder of the data; "": see `mpojax.data.load_task`.
      metric: the one that counts; "": the task's first.
      metrics: of several tasks {task: the one that counts}.
      train_split: what is trained on.
      dev_split: what is reported.
      test_split: what is tested once, at the end; "": nothing.
      train_examples, dev_examples: only so many of these splits.
      test_tokens: only the first so many of the test text.
      shots: few-shot examples of every class; 0: all examples.
      draw: which draw of the shots.
      held_out_examples: taken from the training split.
      max_length: tokens of an input; longer ones lose their end (choices of texts: their
        beginning).
      target_length: tokens of an answer with its end, where answers are free text.
      length: tokens of a row of plain text.
      lengths: batches are cropped to the first of these that holds them.
      exponent: a task's share of a batch is proportional to (its examples) ** exponent.
      temperature: a text-to-text task's is to (its examples) ** (1 / temperature).
    """

    task: str = field(TEXT, "")
    tasks: tuple[str, ...] = field(sequence(TEXT), ())
    dataset: str = field(TEXT, "")
    dev_dataset: str = field(TEXT, "")
    test_dataset: str = field(TEXT, "")
    data_dir: str = field(TEXT, "")
    metric: str = field(TEXT, "")
    metrics: Mapping[str, str] = group()
    train_split: str = field(TEXT, "train")
    dev_split: str = field(TEXT, "")
    test_split: str = field(TEXT, "")
    train_examples: int = field(OR_ALL, 0)
    dev_examples: int = field(OR_ALL, 0)
    test_tokens: int = field(OR_ALL, 0)
    shots: int = field(integer(0), 0)
    draw: int = field(integer(0), 0)
    held_out_examples: int = field(integer(0), 0)
    max_length: int = field(integer(2), 128)
    target_length: int = field(integer(2), 16)
    length: int = field(integer(2), 128)
    lengths: tuple[int, ...] = field(sequence(COUNT), ())
    exponent: float = field(FRACTION.noted("0: equal parts, 1: by size"), 1.0)
    temperature: float = field(number(above=0), 1.0)

    def __post_init__(self):
        checks.check_clashes(
            {
                f"config.draw={self.draw} has nothing to draw: give config.shots": (
                    self.draw and not self.shots
                ),
                f"config.shots={self.shots} and config.train_examples={self.train_examples} both "
                "say how many examples are trained on: give one": (
                    self.shots and self.train_examples
                ),
            }
        )

    @property
    def folder(self) -> str | None:
        """Where data lie; None: see `data.load_task`."""
        return self.data_dir or None


@checks.settings("config.")
class Training:
    """What is trained, how long, and how it is evaluated and kept.

    Attributes:
      variant: name of the row in tables and plots.
      trainable: a name in `mpop.FILTERS`, "adapters", or last_1, last_2, ...
      seed: of everything random: order of the data, dropout, fresh weights.
      steps: updates of the parameters.
      batch_size: rows of a step, over all devices and micro-batches.
      grad_accum_steps: micro-batches of a step.
      optimizer: keys of `training.default_config`.
      rate_exponent: the rate of cores of exact chains falls with their number to this power.
      balance_weight: of the loss that spreads tokens over experts, summed over layers.
      z_weight: of the loss that keeps the logits of experts' routers small.
      label_smoothing: epsilon: the target is (1 - epsilon) one-hot + epsilon / vocabulary.
      mesh: {axis: devices} of data, fsdp, tensor, expert; -1: all that remain.
      eval_batch_size: rows of an evaluation's step.
      eval_every: from one evaluation of the development split to the next.
      keep_best: whether its best state is reported, instead of the last.
      router_every: from one look at every expert's load to the next.
      samples_every: from one look at filled masks to the next.
      statistics_every: from one look at update sizes and norms by layer to the next.
      checkpoint_every: from one saved state, at which a killed run resumes, to the next.
      log_every: steps from one line of metrics to the next.
      save_model: whether the result is saved, as the folder `model` of the workdir.
    """

    variant: str = field(TEXT, "")
    trainable: str = field(TEXT, "all")
    seed: int = field(integer(0, 2**63 - 1), 0)
    steps: int = field(integer(0).noted("0: only evaluates, where the method can"), 0)
    batch_size: int = field(COUNT, 32)
    grad_accum_steps: int = field(COUNT, 1)
    optimizer: Mapping[str, Any] = group(
        learning_rate=number(0),
        role_learning_rates=mapping(number(0), names=nn.ROLES),
        warmup_steps=number(0).noted("below 1: a fraction of all steps"),
        end_factor=FRACTION,
        beta1=FRACTION,
        beta2=FRACTION,
        epsilon=number(0),
        weight_decay=number(0),
        clip_norm=number(0).noted("0: off"),
        trust_bounds=sequence(number(0) | one_of(math.inf)),
        no_decay=PATTERNS,
        no_trust_ratio=PATTERNS,
        decay_to_start=PATTERNS,
        muon_excluded=PATTERNS,
        **{"central_mask.rate": FRACTION | null()},
    )
    rate_exponent: float = field(number(0), 0.5)
    balance_weight: float = field(number(0), 1e-2)
    z_weight: float = field(number(0), 0.0)
    label_smoothing: float = field(number(0, below=1), 0.0)
    mesh: Mapping[str, int] = dataclasses.field(
        default_factory=dict,
        metadata={"allowed": mapping(integer(1) | one_of(-1), names=sharding.AXES)},
    )
    eval_batch_size: int = field(COUNT, 32)
    eval_every: int = field(EVERY, 0)
    keep_best: bool = field(FLAG, False)
    router_every: int = field(EVERY, 0)
    samples_every: int = field(EVERY, 0)
    statistics_every: int = field(EVERY, 0)
    checkpoint_every: int = field(EVERY, 0)
    log_every: int = field(COUNT, 10)
    save_model: bool = field(FLAG, False)

    def __post_init__(self):
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"config.batch_size={self.batch_size} rows cannot be split into "
                f"config.grad_accum_steps={self.grad_accum_steps} parts; make it a multiple of "
                "that."
            )


@checks.settings("config.")
class Generation:
    """Texts that are generated for evaluation.

    Attributes:
      bleu_prompts: continuations of the test text, `bleu_length` tokens behind
        `bleu_prompt_length`.
      bleu_prompt_length, bleu_length: tokens of the text, and of what is generated behind it.
      bleu_tokenize: how sacrebleu cuts words.
      samples: free texts, generated by `sampling`.
      sample_length: their tokens.
      sampling: fields of `models.Sampling`.
      beams: of answers; 1: greedy.
    """

    bleu_prompts: int = field(integer(0), 0)
    bleu_prompt_length: int = field(COUNT, 64)
    bleu_length: int = field(COUNT, 64)
    bleu_tokenize: str = field(TEXT, "13a")
    samples: int = field(integer(0), 0)
    sample_length: int = field(COUNT, 64)
    sampling: Mapping[str, Any] = group(
        temperature=number(0), top_k=integer(0), top_p=number(above=0, high=1)
    )
    beams: int = field(COUNT, 1)


@checks.settings("config.")
class Pretraining:
    """A model to pre-train on a corpus: its sizes, its start, its rows.

    Attributes:
      corpus: folder made by tools/prepare_corpus.py.
      architecture: what layers share: "mpobert" central cores, "shared" all, "unshared" nothing.
      model: arguments of `mpobert.settings`; 0 stands for their defaults.
      start: from scratch or a teacher, see `mpobert.start`.
      dtype: of the computation.
      remat: recompute layers in the backward pass.
      length: tokens of a row.
      masking: fields of `data.Masking`.
      sop: whether sentence order is learned, too.
      pack: whether short texts share rows.
      max_segments: texts of a row, at most.
      eval_rows: of the development split, that are evaluated.
    """

    corpus: str = field(TEXT, "")
    architecture: str = field(one_of(*SHARING), "mpobert")
    model: Mapping[str, Any] = group(
        num_layers=COUNT,
        hidden_size=COUNT,
        embedding_size=COUNT,
        max_positions=integer(2),
        groups=COUNT,
        num_cores=integer(2),
        bond=BOND,
        adapter_rank=integer(0),
        dropout=FRACTION,
        vocab_size=integer(0).noted("0: that of the corpus"),
        **dict.fromkeys(
            ("num_heads", "intermediate_size"), integer(0).noted("0: by the other sizes")
        ),
    )
    start: Mapping[str, Any] = group(
        kind=one_of(*STARTS),
        scaling=one_of(*mpobert_start.SCALINGS),
        init=one_of(*mpobert_start.INITS),
        gauge=one_of(*mpo.GAUGES),
        stddev=number(above=0),
        adapter_stddev=number(above=0),
        num_teacher_layers=integer(0) | null(),
    )
    dtype: str = field(one_of(*COMPUTE_DTYPES), "float32")
    remat: bool = field(FLAG, True)
    length: int = field(integer(2), 128)
    masking: Mapping[str, Any] = group(rate=FRACTION)
    sop: bool = field(FLAG, True)
    pack: bool = field(FLAG, True)
    max_segments: int = field(COUNT, 8)
    eval_rows: int = field(OR_ALL, 0)


def declared(kind: type) -> Iterator[tuple[str, checks.Allowed]]:
    """(dotted name, allowed values) of the fields of a dataclass of this module."""
    for each in dataclasses.fields(kind):
        if allowed := each.metadata.get("allowed"):
            yield each.name, allowed
        for name, allowed in each.metadata.get("parts", {}).items():
            yield f"{each.name}.{name}", allowed


# Of configs besides those of runs: of `configs/compress.py`, and axes of sweeps.
_OTHERS = {
    "calibration.examples": COUNT,
    "calibration.max_length": integer(2),
    "student_layers": sequence(integer(0)),
}
FIELDS: dict[str, checks.Allowed] = _OTHERS | {
    name: allowed
    for kind in (Pretraining, Model, Compression, Data, Training, Generation)
    for name, allowed in declared(kind)
    if allowed not in (TEXT, FLAG) and name != "architecture"  # which has two meanings
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What every method sees of a config: its fields, by concern."""

    model: Model
    compression: Compression
    data: Data
    training: Training


def read(kind: type[T], config: Mapping[str, Any]) -> T:
    """A dataclass of this module, or of a method, out of a config; absent fields are defaults.

    Raises:
      ValueError: a value that is not allowed, or fields that clash.
    """
    names = [each.name for each in dataclasses.fields(kind) if each.name in config]
    return kind(**{name: plain(config[name]) for name in names})


def read_all(config: Mapping[str, Any]) -> Options:
    """All of `Options`."""
    kinds = {each.name: each.type for each in dataclasses.fields(Options)}
    if "corpus" in config:  # whose model is made, see `Pretraining`
        config = {n: config[n] for n in config if n not in ("model", "architecture")}
    return Options(**{name: read(kind, config) for name, kind in kinds.items()})


def plain(value: Any) -> Any:
    """A value of a config without the classes of ml_collections."""
    return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value


def check_default(options: Options, names: Sequence[str], why: str) -> None:
    """Raises ValueError where a field that a run has no use for is not at its default.

    Args:
      names: of fields.
      why: it has none; what the message says behind the value.
    """
    for part in (getattr(options, each.name) for each in dataclasses.fields(options)):
        for each in dataclasses.fields(part):
            value, default = getattr(part, each.name), each.default
            if each.name in names and value and value != default:
                left = {} if default is dataclasses.MISSING else default
                raise ValueError(f"config.{each.name}={value!r}{why}. Leave it at {left!r}.")
