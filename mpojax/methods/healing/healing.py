"""`heal`: the tuning as one function, resumed from its folder."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from mpojax import checks, data, models, training
from mpojax.data import pipeline
from mpojax.methods.healing import objective
from mpojax.models.evaluation import check_vocabulary
from mpojax.models.model import check_length

# Of `training.default_config()`. Factors in their pivoted form hold columns of W itself, so rates
# are those of tuning a dense model: 3e-4 doubled the divergence of SmolLM2 in ten steps.
OPTIMIZER = {
    "name": "adamw",
    "learning_rate": 3e-5,
    "schedule": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
}
TRAINABLE = "cores_and_norms"

_COUNT = checks.integer(1)
_FIELDS = {
    **dict.fromkeys(("steps", "batch_size", "grad_accum_steps", "checkpoint_every"), _COUNT),
    "length": checks.integer(2),
    "dtype": checks.one_of(*models.config.COMPUTE_DTYPES),
}


def heal(
    student: models.LanguageModel,
    teacher: models.LanguageModel | None,
    tokens: np.ndarray,
    *,
    steps: int = 300,
    batch_size: int = 4,
    length: int = 512,
    learning_rate: float = OPTIMIZER["learning_rate"],
    distill_weight: float = objective.DISTILL_WEIGHT,
    trainable: str = TRAINABLE,
    optimizer: Mapping[str, Any] | None = None,
    grad_accum_steps: int = 1,
    dtype: str = "float32",
    remat: bool = False,
    mesh: Mesh | None = None,
    seed: int = 0,
    held_out: np.ndarray | None = None,
    workdir: str | pathlib.Path | None = None,
    checkpoint_every: int = 25,
) -> models.LanguageModel | None:
    """Tunes a compressed decoder on plain text, see `mpojax.methods.healing`.

    With a `workdir` the same call resumes exactly where it was stopped, also by `kill -9`, and once
    it is finished gives the same model at once. Next to checkpoints the folder holds metrics of
    every step, and `result.json` with the perplexities before and after.

    Args:
      student: the compressed model; is not changed.
      teacher: the model as it was before; None where `distill_weight` is 0.
      tokens: (T,) integers, the text to learn from. An epoch cuts it into blocks of `length`.
      steps, batch_size, length: batches of `batch_size` blocks; the cost is in their product.
      learning_rate: its peak. It warms up over a twentieth of the steps and falls like a cosine.
      distill_weight: 1 learns from the teacher alone, 0 from the text alone.
      trainable: what is trained: "cores_and_norms", "cores", "auxiliary", "adapters" (those that
        `compression.add_adapters` put parallel to the matrices), "all", or another set of
        `mpop.FILTERS`.
      optimizer: fields of `training.default_config()` that replace those of `OPTIMIZER`.
      grad_accum_steps: parts of a batch that are worked on one after another, for less memory.
      dtype: of the computation; parameters are float32.
      remat: recomputes layers in the backward pass, for less memory.
      mesh: see `training.make_mesh`; None: all devices, which divide the rows of a batch.
      held_out: (T,) integers of other text, whose perplexity is measured before and after.
      workdir: folder of the run; None keeps nothing.
      checkpoint_every: steps between checkpoints.

    Returns:
      The healed model, of the student's form and size; None where a signal (Ctrl-C, SIGTERM) asked
      to stop: the same call resumes.

    Raises:
      ValueError: arguments that do not fit, or a folder of another run: says which argument.
      NonFiniteLossError: the loss is NaN or infinite; names the step.

    Source: tuning by labels after truncation is that of SVD-LLM (arXiv:2403.07378, section 3.3),
    there on low-rank adapters; distillation from the original that of MiniLLM's forward divergence
    (arXiv:2306.08543, equation 1).

    Examples:
      >>> import numpy as np
      >>> import mpojax as mj
      >>> from flax import nnx
      >>> from mpojax import models
      >>> from mpojax.methods import healing
      >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
      >>> dense = models.build(models.DecoderConfig(vocab_size=99, **sizes), rngs=nnx.Rngs(0))
      >>> small, _ = mj.compress(dense, [mj.Rule("layers/.*", form="low_rank", rank=4)])
      >>> healed = healing.heal(small, dense, np.arange(90), steps=2, batch_size=8, length=8)
      >>> healed.shapes == small.shapes
      True
    """
    arguments = dict(locals())
    checks.check({name: arguments[name] for name in _FIELDS}, _FIELDS)
    batches = batches_of(student, tokens, length, batch_size, seed, mesh)
    learnt = objective.learning(
        *(_computing(model, dtype, remat) for model in (student, teacher)),
        trainable=trainable,
        distill_weight=distill_weight,
    )
    fields = OPTIMIZER | {"learning_rate": learning_rate} | dict(optimizer or {})
    made = training.make_optimizer(fields, training.roles(learnt.model), steps)
    folder = None if workdir is None else _claimed(workdir, arguments, fields)
    if folder is not None and folder.finished:
        held_out = None  # `result.json` has its perplexities
    before = _perplexity(student, held_out, length)
    result = training.fit(
        training.TrainState.create(learnt.model, learnt.trainable, made, seed=seed),
        learnt.loss,
        batches,
        optimizer=made,
        steps=steps,
        mesh=mesh,
        rules=training.model_rules(learnt.model),
        hooks=_hooks(folder, checkpoint_every),
        folder=folder and folder.path,
        grad_accum_steps=grad_accum_steps,
        log_every=1,
    )
    if result.interrupted:
        return None
    healed = learnt.student_of(result.state.model())
    healed = _computing(healed, student.config.dtype, student.config.remat)
    _report(folder, result, before, _perplexity(healed, held_out, length))
    return healed


def batches_of(
    model: models.LanguageModel | models.StoredModel,
    tokens: np.ndarray,
    length: int,
    batch_size: int,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> data.LanguageModelData:
    """What `heal` learns from; raises ValueError where that fits neither model nor devices."""
    check_length(model.config, length)
    training.sharding.check_batch(batch_size, mesh or training.make_mesh())
    stream = data.TokenStream(tokens, 0, name="tokens")
    check_vocabulary(model, stream.tokens)
    return data.LanguageModelData(stream, length, batch_size, seed=seed)


def _computing(model: models.LanguageModel | None, dtype: str, remat: bool):
    """The model with other settings of the computation; copied only where these differ."""
    if model is None or (model.config.dtype, model.config.remat) == (dtype, remat):
        return model
    return models.reconfigure(model, dtype=dtype, remat=remat)


def _hooks(folder: training.Workdir | None, checkpoint_every: int) -> list[training.Hook]:
    hooks = [training.Progress("healing"), training.StopOnSignal()]
    if folder is not None:
        # Every call is given the teacher: checkpoints need not hold it.
        unsaved = (objective.TEACHER,)
        hooks.append(training.Checkpoint(checkpoint_every, unsaved=unsaved))
    return hooks


def _claimed(workdir, arguments: Mapping[str, Any], optimizer: Mapping) -> training.Workdir:
    """The run's folder; it knows the run by its arguments, and arrays by their digests."""
    names = ("steps", "batch_size", "length", "distill_weight", "trainable", "grad_accum_steps")
    config = {name: arguments[name] for name in (*names, "dtype", "seed")}
    digests = {"tokens": pipeline.fingerprint({"tokens": np.asarray(arguments["tokens"])})}
    for name in ("student", "teacher"):
        if arguments[name] is not None:
            digests[name] = pipeline.fingerprint(models.to_arrays(arguments[name]))
    return training.Workdir(workdir, {"healing": config | {"optimizer": optimizer} | digests})


def _perplexity(model, held_out, length: int) -> models.Perplexity | None:
    return None if held_out is None else models.perplexity(model, held_out, window=length)


def _report(folder: training.Workdir | None, result: training.FitResult, before, after) -> None:
    found = {"fit": result.summary()}
    if before is not None:
        found |= {"perplexity_before": before.value, "perplexity_after": after.value}
        found["protocol"] = after.protocol
        logging.info("healing: perplexity %.2f -> %.2f", before.value, after.value)
    if folder is not None and not folder.finished:
        folder.write_result(found)
