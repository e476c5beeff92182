"""Allowed values of the fields of a config: bounds and choices, the same for every entry point.

Fields are named as on the command line, without `config.`; those of a sweep's `cell` are those of
its runner. Types are what the command line enforces. Fields of settings objects (`search.rounds`,
`opdf.alignment`, ...) are checked by those objects; what depends on the model, the data or several
fields, where that is known.
"""

import math
from collections.abc import Iterator
from typing import Any

import ml_collections

from mpojax import checks, nn
from mpojax.checks import Allowed, integer, mapping, null, number, one_of, sequence, text
from mpojax.models.config import COMPUTE_DTYPES
from mpojax.training import sharding

_COUNT = integer(1)
_STEPS = integer(0).noted(
    "0: only evaluates, in finetune, multitask, language_model and text_to_text"
)
_OR_ALL = integer(0).noted("0: all")
_EVERY = integer(0).noted("in steps; 0: never, or at the end alone")
_SEED = integer(0, 2**63 - 1)
_SHARE = number(0, 1)
_RATE = number(0)
_DROPOUT = number(-1, 1).noted("negative: as the model has it")
_PATTERNS = sequence(checks.expression())
_RULES = sequence(checks.pair(checks.expression(), mapping(checks.anything())))
_BUDGET = number(above=0) | null()
_BOND = integer(1) | null()

_DATA = {
    **dict.fromkeys(("train_examples", "dev_examples", "test_examples", "test_tokens"), _OR_ALL),
    **dict.fromkeys(("shots", "draw", "held_out_examples", "calibration_examples"), integer(0)),
    "eval_rows": _OR_ALL,
    "calibration.examples": _COUNT,
    "max_length": integer(2),
    "calibration.max_length": integer(2),
    "length": integer(2),
    "target_length": integer(2),
    "lengths": sequence(_COUNT),
    "max_segments": _COUNT,
    "exponent": _SHARE.noted("0: equal parts, 1: by size"),
    "temperature": number(above=0),
    "tasks": sequence(text()),
    "masking.rate": _SHARE,
}
_TRAINING = {
    "seed": _SEED,
    "steps": _STEPS,
    **dict.fromkeys(("batch_size", "grad_accum_steps", "eval_batch_size", "log_every"), _COUNT),
    **dict.fromkeys(("eval_every", "checkpoint_every", "router_every"), _EVERY),
    **dict.fromkeys(("samples_every", "statistics_every"), _EVERY),
    "mesh": mapping(integer(1) | one_of(-1), names=sharding.AXES),
    "dtype": one_of(*COMPUTE_DTYPES),
    "dropout": _DROPOUT,
    "label_smoothing": number(0, below=1),
    "balance_weight": number(0),
    "z_weight": number(0),
    "rate_exponent": number(0),
    "optimizer.learning_rate": _RATE,
    "optimizer.role_learning_rates": mapping(_RATE, names=nn.ROLES),
    "optimizer.warmup_steps": number(0).noted("below 1: a fraction of all steps"),
    "optimizer.end_factor": _SHARE,
    "optimizer.beta1": number(0, 1),
    "optimizer.beta2": number(0, 1),
    "optimizer.epsilon": number(0),
    "optimizer.weight_decay": number(0),
    "optimizer.clip_norm": number(0).noted("0: off"),
    "optimizer.trust_bounds": sequence(number(0) | one_of(math.inf)),
    "optimizer.no_decay": _PATTERNS,
    "optimizer.no_trust_ratio": _PATTERNS,
    "optimizer.decay_to_start": _PATTERNS,
    "optimizer.muon_excluded": _PATTERNS,
    "optimizer.central_mask.rate": _SHARE | null(),
}
_MODEL = {
    "matrices": _PATTERNS,
    "rules": _RULES,
    "adapters": _RULES,
    "budget": _BUDGET,
    "bond": _BOND,
    "num_layers_kept": _OR_ALL,
    "student_layers": sequence(integer(0)),
    "model.num_layers": _COUNT,
    "model.hidden_size": _COUNT,
    "model.embedding_size": _COUNT,
    "model.max_positions": integer(2),
    "model.groups": _COUNT,
    "model.num_cores": integer(2),
    "model.bond": _BOND,
    "model.adapter_rank": integer(0),
    "model.dropout": _SHARE,
    **dict.fromkeys(
        ("model.num_heads", "model.intermediate_size", "model.vocab_size"),
        integer(0).noted("0: by the other sizes"),
    ),
    "start.stddev": number(above=0),
    "start.adapter_stddev": number(above=0),
    "start.num_teacher_layers": integer(0) | null(),
    "experts.number": _COUNT,
    "experts.k": _COUNT,
    "experts.bond": _BOND,
    "experts.cores": integer(2),
    "experts.capacity_factor": number(above=0) | null(),
}
_GENERATION = {
    **dict.fromkeys(("bleu_prompts", "samples"), integer(0)),
    **dict.fromkeys(("bleu_prompt_length", "bleu_length", "sample_length", "beams"), _COUNT),
    "sampling.temperature": number(0),
    "sampling.top_k": integer(0),
    "sampling.top_p": number(above=0, high=1),
}
FIELDS: dict[str, Allowed] = _DATA | _TRAINING | _MODEL | _GENERATION
# Axes of sweeps, besides `cell`.
AXES: dict[str, Allowed] = {
    "seeds": sequence(_SEED),
    "draws": sequence(integer(0)),
    "caps": sequence(_COUNT),
    "depths": sequence(_COUNT),
    "shots": sequence(integer(0)),
    "learning_rates": sequence(_RATE),
    "weight_decays": sequence(number(0)),
    "warmups": sequence(number(0)),
    "repeats": sequence(text()),
}


def check(config: ml_collections.ConfigDict, *, can_only_evaluate: bool = False) -> None:
    """Checks every field that has bounds or choices; all other numbers must be finite.

    Args:
      can_only_evaluate: the run has a meaning without a step of training.

    Raises:
      ValueError: names each wrong field, its value and what is allowed.
    """
    _check(dict(leaves(config)), FIELDS | ({} if can_only_evaluate else {"steps": _COUNT}))
    if "grad_accum_steps" in config and config.batch_size % config.grad_accum_steps:
        raise ValueError(
            f"config.batch_size={config.batch_size} rows cannot be split into "
            f"config.grad_accum_steps={config.grad_accum_steps} parts; make it a multiple of that."
        )


def check_axes(config: ml_collections.ConfigDict) -> None:
    """The same for the fields of a sweep besides its `cell`."""
    _check({name: value for name, value in leaves(config) if not name.startswith("cell.")}, AXES)


def allowed(name: str, is_sweep: bool) -> Allowed | None:
    """Allowed values of a field, None where they depend on more than the field."""
    if name.startswith("cell."):
        return FIELDS.get(name.removeprefix("cell."))
    return (AXES if is_sweep else FIELDS).get(name)


def _check(values: dict[str, Any], fields: dict[str, Allowed]) -> None:
    finite = {name: number() for name, value in values.items() if isinstance(value, float)}
    known = {name: allowed for name, allowed in fields.items() if name in values}
    checks.check(
        {f"config.{name}": value for name, value in values.items()},
        {f"config.{name}": allowed for name, allowed in (finite | known).items()},
    )


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field; mappings in `FIELDS`, and empty ones, are whole."""
    for key in config:
        name, value = f"{prefix}{key}", config[key]
        if not isinstance(value, ml_collections.ConfigDict):
            yield name, value
        elif name in FIELDS or not len(value):
            yield name, value.to_dict()
        else:
            yield from leaves(value, f"{name}.")
