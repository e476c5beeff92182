"""Fine-tunes every variant of a comparison on one task, one cell for each variant and seed."""

import json
import pathlib
import shutil

import ml_collections
from absl import logging
from flax import nnx

from experiments import fitting, sources
from mpojax import io, models, training
from mpojax.data import pipeline, tasks
from mpojax.methods import mpop


def run(
    config: ml_collections.ConfigDict,
    workdir: training.Workdir,
    arrays: tuple[dict, dict, tuple[str, ...]],
    variants: list,
    compressed: dict,
) -> dict[str, list[dict]] | None:
    """Results of all cells, {variant name: one entry for each seed}; None when it was interrupted.

    Seeds run in the outer loop, so that a stopped comparison has whole seeds first. Finished cells
    are read from their `result.json`.
    """
    results: dict[str, list[dict]] = {variant.name: [] for variant in variants}
    for seed in config.seeds:
        for variant in variants:
            folder = workdir.path / "cells" / f"{variant.name}-seed{seed}"
            record = folder / "result.json"
            if not record.is_file():
                logging.info("fine-tuning: %s, seed %d", variant.label, seed)
                model = compressed[variant.name][0]
                if not fine_tune(config, variant, model, arrays, seed, folder, workdir):
                    return None
            results[variant.name].append(json.loads(record.read_text(encoding="utf-8")))
    return results


def load_arrays(config, source: str) -> tuple[dict, dict, tuple[str, ...]]:
    """Token arrays of the training split and of the one that is reported; names of the classes.

    Raises:
      ValueError: an unknown task or split, or a split without labels.
    """
    task = tasks.load_task(config.task, config.data_dir or None)
    if task.kind != "classification":
        raise ValueError(f"config.task={config.task!r} is a {task.kind}: compare on classes.")
    words, _ = sources.load_tokenizer(source)
    arrays = []
    for name, limit in ((config.train_split, 0), (config.test_split, config.test_examples)):
        split = task[name].take(limit) if limit else task[name]
        if split.labels is None:
            raise ValueError(f"split {name!r} of task {task.name!r} has no labels; choose another.")
        arrays.append(split.encode(words, config.max_length))
        logging.info("%s: %d examples for %s", task.name, len(split), name)
    return arrays[0], arrays[1], task.label_names


def fingerprints(arrays: tuple[dict, dict, tuple[str, ...]]) -> dict[str, dict]:
    """Fingerprints that `training.Workdir.check_data` compares; `arrays` as of `load_arrays`."""
    parts = {"train": arrays[0], "test": arrays[1]}
    return {
        name: {"examples": len(part["labels"]), "fingerprint": pipeline.fingerprint(part)}
        for name, part in parts.items()
    }


def fine_tune(config, variant, encoder, arrays, seed, folder: pathlib.Path, workdir) -> bool:
    """One cell; False when a signal asked to stop (an unfinished cell keeps its checkpoint)."""
    train, test, labels = arrays
    head = {"pooling": config.pooling, "label_names": labels}
    model = models.with_head(encoder, len(labels), **head, rngs=nnx.Rngs(seed))
    model = models.reconfigure(
        model,
        dropout=config.dropout,
        attention_dropout=config.dropout,
        dtype=config.dtype,
        remat=config.remat,
    )
    trainable = mpop.trainable_filter(variant.trainable)
    counts = mpop.parameter_counts(model, trainable)
    optimizer = fitting.make_optimizer(config, model, config.steps)
    evaluator = training.Evaluator(training.classify, training.accuracy)
    result = fitting.fit(
        config,
        fitting.train_data(config, train, seed),
        training.TrainState.create(model, trainable, optimizer, seed=seed),
        optimizer,
        loss=training.objective("classification"),
        steps=config.steps,
        folder=folder,
        label=f"{variant.label}, seed {seed}",
        hooks=[training.Evaluate("test", fitting.eval_data(config, test), evaluator)],
    )
    if result.interrupted:
        return False
    if config.save_finetuned and seed == config.seeds[0]:
        target = workdir.path / "finetuned" / variant.name
        shutil.rmtree(target, ignore_errors=True)  # of a start that was killed while saving
        io.save_pretrained(result.state.model(), target)
    summary = {
        "variant": variant.name,
        "seed": seed,
        "accuracy": result.metrics["test/accuracy"],
        "total": counts["total"],
        "trained": counts["trainable"],
        "counts": counts,
        "steps_per_second": result.steps_per_second,
        "fit": result.summary(),
    }
    workdir.write_json(f"cells/{folder.name}/result.json", summary)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of use to unfinished cells only
    return result.stop_requested is None
