r"""Pre-trains an encoder on a corpus: masked words and the order of sentences.

    python -m tools.prepare_corpus --text=TEXTS --out=CORPUS --vocab_size=8000
    python -m experiments.pretrain --config=configs/mpobert/base12.py --config.corpus=CORPUS \
        --workdir=runs/base12
    python -m experiments.pretrain --config=configs/mpobert/base48.py --config.corpus=CORPUS \
        --config.mesh.fsdp=4 --dry_run

The fields of a config are explained in `configs/mpobert/pretraining.py`. The workdir gets
`result.json`, metrics as JSONL and TensorBoard events, `samples.txt` with filled masks, and the
model with its tokenizer in `model/`, ready for `experiments.finetune`. Started again on its workdir
an interrupted run resumes exactly. `--dry_run` prints parameters, memory, FLOPs and the sharding of
one step and trains nothing. Several processes: see `experiments.launch`.
"""

import pathlib
import shutil
import time

import jax
import ml_collections
import numpy as np
from absl import flags, logging
from flax import nnx

from configs.mpobert import pretraining as defaults
from experiments import fitting, launch, pretraining, tuning
from mpojax import data, files, models, training
from mpojax.methods import mpop
from mpojax.training.tasks import pretraining as objective

check = pretraining.check  # what sweeps call before the first cell

_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what a step would cost; train nothing.")


def main(config: ml_collections.ConfigDict, folder: str | None) -> int:
    """Runs the job; returns the exit status."""
    if _DRY_RUN.value:
        print(dry_run(config).text())
        return 0
    return tuning.main(run, config, folder)


def dry_run(config: ml_collections.ConfigDict) -> training.Report:
    """Cost of one step: nothing is allocated but a teacher, whose sizes decide.

    Raises:
      ValueError: what is wrong with the config, before anything is compiled.
    """
    pretraining.check(config)
    corpus = data.Corpus(config.corpus)
    planned = pretraining.plan(config, corpus)
    train = pretraining.train_data(config, corpus)
    mesh = pretraining.mesh(config)
    model = mpop.abstract(planned.config, planned.shapes)
    optimizer = fitting.make_optimizer(config, model, config.steps)
    return training.dry_run(
        training.abstract_state(model, nnx.Param, optimizer),
        objective.pretraining_loss,
        train[0],
        optimizer=optimizer,
        mesh=mesh,
        rules=training.model_rules(model),
        grad_accum_steps=config.grad_accum_steps,
        prepare=fitting.prepare(config, bool(planned.shapes)),
        model_flops=_model_flops(config, planned.config, train),
    )


def run(config: ml_collections.ConfigDict, folder: str | pathlib.Path) -> int:
    """One run in `folder`; 0 when `result.json` is written, 1 when a signal asked to stop."""
    pretraining.check(config)
    start = time.perf_counter()
    known = (pathlib.Path(folder) / "config.json").is_file()
    workdir = training.Workdir(folder, config) if known else None
    if workdir is not None and workdir.finished:
        return 0
    # All that can be wrong is found before the folder is claimed, and before anything is compiled.
    corpus = data.Corpus(config.corpus)
    planned = pretraining.plan(config, corpus)
    pretraining.mesh(config)
    train, dev = pretraining.train_data(config, corpus), pretraining.eval_data(config, corpus)
    model = pretraining.build(config, planned)
    optimizer = fitting.make_optimizer(config, model, config.steps)
    workdir = workdir or training.Workdir(folder, config)
    workdir.check_data(tuning.fingerprints({"train": train, "dev": dev}))
    _describe(config, model, train, corpus)
    result = _fit(config, workdir.path, model, optimizer, train, dev, corpus)
    if result.interrupted:
        return 1
    _finish(config, workdir, corpus, train, result, time.perf_counter() - start)
    return int(result.stop_requested is not None)


def _fit(config, folder, model, optimizer, train, dev, corpus) -> training.FitResult:
    state = training.TrainState.create(model, nnx.Param, optimizer, seed=config.seed)
    hooks = [training.Evaluate("dev", dev, objective.evaluator(), every=config.eval_every)]
    if config.samples_every:
        batch = dev.rows(0, slice(0, config.eval_batch_size))
        hooks.append(objective.FilledMasks(batch, corpus.tokenizer(), every=config.samples_every))
    if config.statistics_every:
        roles = training.roles(model)
        hooks.append(training.UpdateStatistics(roles, every=config.statistics_every))
    return fitting.fit(
        config,
        train,
        state,
        optimizer,
        loss=objective.pretraining_loss,
        steps=config.steps,
        folder=folder,
        label=config.variant or config.architecture,
        hooks=hooks,
    )


def _describe(config, model, train, corpus) -> None:
    counts = models.count_parameters(model)
    logging.info(
        "%s: %d layers, hidden %d, %s parameters (%s)",
        *(config.variant or config.architecture, model.config.num_layers),
        *(model.config.hidden_size, f"{sum(counts.values()):,}"),
        ", ".join(f"{role} {count:,}" for role, count in counts.items() if count),
    )
    is_taught = config.start.kind == "teacher"
    logging.info("starts from %s", config.start.teacher if is_taught else "scratch")
    logging.info(
        "corpus %s: %s tokens, %d rows of %d (%.1f %% padding), an epoch is %d steps",
        *(corpus.folder, f"{corpus.count('train'):,}", train.num_examples, config.length),
        *(100 * train.padding_share, train.steps_per_epoch),
    )


def _finish(config, workdir, corpus, train, fitted: training.FitResult, seconds: float) -> None:
    model = fitted.state.model()
    counts = models.count_parameters(model)
    tokens = int(fitted.state.step) * config.batch_size * config.length
    metrics = {k.removeprefix("dev/"): v for k, v in fitted.metrics.items() if "dev/" in k}
    speed = fitted.steps_per_second
    per_step = config.batch_size * config.length
    result = {
        "task": "pretraining",
        "variant": config.variant,
        "architecture": config.architecture,
        "seed": config.seed,
        "metric_name": "mlm_loss",
        "metric": metrics["mlm_loss"],
        "metrics": metrics,
        "num_layers": model.config.num_layers,
        "hidden_size": model.config.hidden_size,
        "total": sum(counts.values()),
        "counts": counts,
        "steps": int(fitted.state.step),
        "tokens": tokens,
        "epochs": int(fitted.state.step) / train.steps_per_epoch,
        "tokens_per_second": speed and speed * per_step,
        "model_flops_per_step": _model_flops(config, model.config, train),
        "fit": fitted.summary(),
        "seconds": seconds,
    }
    if config.save_model:
        tuning.save(config, fitted.state, workdir.path / "model", corpus.folder)
    if jax.process_index() == 0:
        files.write_atomic(workdir.path / "summary.txt", summary(result))
    workdir.write_result(result)
    if jax.process_index() == 0:
        shutil.rmtree(workdir.path / "checkpoints", ignore_errors=True)


def _model_flops(config, model: models.EncoderConfig, train: data.PretrainData) -> int:
    batch = {name: np.shape(array) for name, array in train.rows(0, slice(0, 1)).items()}
    return models.model_flops(
        model,
        config.batch_size,
        config.length,
        predictions=batch["mlm_positions"][1],
        sentences=batch.get("sop_positions", (1, 0))[1],
    )


def summary(result: dict) -> str:
    """Human-readable summary of the result."""
    metrics = tuning.listed(result["metrics"])
    speed = result["tokens_per_second"]
    lines = [
        f"{result['variant'] or result['architecture']}, {result['num_layers']} layers, hidden "
        f"{result['hidden_size']}, seed {result['seed']}: {result['total']:,} parameters",
        f"  {metrics}, after {result['tokens']:,} tokens in {result['steps']:,} steps "
        f"({result['epochs']:.2f} epochs)",
    ]
    if speed:
        lines.append(f"  {speed:,.0f} tokens/s, {result['seconds']:,.0f} s in all")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    launch.run(main, defaults.get_config(), needs_workdir=lambda: not _DRY_RUN.value)
