r"""Prunes a super-set of adapters to a budget of parameters, on one task with one seed.

    python -m experiments.pet_search --config=configs/pet_search/minilm.py:structured_2,sst2 \
        --config.data_dir=DATA --workdir=runs/search

The fields of a config are those of fine-tuning (`configs/mpop/base.py`) and `search`,
`after_search`, `method` (`configs/pet_search/base.py`). The workdir gets
`result.json`, metrics, the history of the search, what was kept for each layer and module as a
table and a heat map, and the adapter. Started again on its workdir an interrupted run resumes
exactly.
"""

import dataclasses
import pathlib

import jax
import ml_collections

from configs.pet_search import base
from experiments import fitting, jobs, launch, tuning
from experiments.render import runs
from mpojax import compression, data, io, models, training
from mpojax.methods import mpop
from mpojax.methods.pet import masks as pet_masks
from mpojax.methods.pet import search as pet_search

FINALISE = ("continue", "retrain")


def main(config: ml_collections.ConfigDict, folder: str) -> int:
    """Runs the job; returns the exit status."""
    return tuning.main(run, config, folder)


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked without loading weights or data.

    Raises:
      ValueError: a field that is wrong whatever the model is.
    """
    jobs.check(config)
    data.check_task(config.task)
    settings = read_settings(config)
    if config.after_search not in FINALISE:
        raise ValueError(
            f"config.after_search={config.after_search!r} must be one of {', '.join(FINALISE)}."
        )
    if settings is None:
        return
    settings.round_steps(config.steps)
    if not config.adapters:
        raise ValueError(
            "config.search has nothing to search: give the super-set as config.adapters, such as "
            '((".*/(query|value)", {"rank": 8}),).'
        )
    if config.trainable != "adapters":
        raise ValueError(
            f"config.trainable={config.trainable!r}: a search trains the adapters; set it to "
            "'adapters'."
        )
    fitting.check_left_alone(
        config, ("keep_best", "eval_every", "squeeze"), "a search reports its last state"
    )


def read_settings(config: ml_collections.ConfigDict) -> pet_search.SearchSettings | None:
    """Settings of the search; None for plain tuning of the adapters.

    Raises:
      ValueError: an unknown field or a bad value.
    """
    fields = config.search.to_dict()
    if not fields.get("budget"):
        return None
    known = {field.name for field in dataclasses.fields(pet_search.SearchSettings)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"config.search has unknown fields {unknown}; known are {sorted(known)}.")
    # The random criterion differs from run to run.
    return pet_search.SearchSettings(**fields | {"seed": fields.get("seed", 0) + config.seed})


def run(config: ml_collections.ConfigDict, folder: str | pathlib.Path) -> int:
    """One run in `folder`; 0 when `result.json` is written, 1 when a signal asked to stop."""
    check(config)
    settings = read_settings(config)

    def prepare(config):
        job = jobs.prepare(config)
        if settings is not None:  # a mistake in it shows before the folder is claimed
            pet_search.Search(job.model, settings, job.loss, config.steps)
        return job

    def train(config, job, path):
        if settings is None:
            return _tune(config, job, path)
        return _search(config, settings, job, path)

    def describe(config, job, outcome):
        facts = {"method": config.method, "fit": None, "search": None, "search_seconds": 0.0}
        head = mpop.head_parameters(outcome.state.model())
        trained = mpop.parameter_counts(outcome.state.model(), outcome.trainable)["trainable"]
        sizes = {"head_parameters": head, "updates": trained - head}
        return facts | sizes | outcome.facts

    return tuning.run(
        config, folder, prepare=prepare, train=train, describe=describe, summary=summary
    )


def _tune(
    config: ml_collections.ConfigDict, job: jobs.Job, folder: pathlib.Path
) -> tuning.Outcome | None:
    """Tuning without a search; None when it was interrupted."""
    outcome = tuning.tune(config, job, folder)
    if outcome is not None and config.trainable == "adapters":
        outcome.facts.update(_saved(outcome.state.model(), folder))
    return outcome


def _saved(model: models.Model, folder: pathlib.Path, mask=None) -> dict[str, int]:
    """Writes the adapter; the size of its files."""
    adapter = folder / "adapter"
    if jax.process_index() == 0:
        io.save_adapter(model, adapter, mask=mask)
    return {"adapter_bytes": sum(path.stat().st_size for path in adapter.glob("*"))}


def _search(
    config: ml_collections.ConfigDict,
    settings: pet_search.SearchSettings,
    job: jobs.Job,
    folder: pathlib.Path,
) -> tuning.Outcome | None:
    """The search, and what follows it; None when it was interrupted."""
    accept = models.adapter_filter(job.model)
    optimizer = pet_search.masked(fitting.make_optimizer(config, job.model, config.steps))
    search = pet_search.Search(job.model, settings, job.loss, config.steps)
    state = training.TrainState.create(job.model, accept, optimizer, seed=config.seed)

    def fit(state, label, path, hooks):
        return fitting.fit(
            config,
            job.train,
            state,
            optimizer,
            loss=job.loss,
            steps=config.steps,
            folder=path,
            label=f"{config.variant} {label}".strip(),
            hooks=hooks,
        )

    found = fit(state, "search", folder / "search", [search])
    if found.interrupted:
        return None
    masks, state = search.masks(found.state), found.state
    facts = {"fit": found.summary(), "search_seconds": search.seconds}
    if config.after_search == "retrain":
        again = search.restarted(job.model, masks, accept, optimizer, config.seed)
        found = fit(again, "retraining", folder / "retrain", [])
        if found.interrupted:
            return None
        state, facts["retrain_fit"] = found.state, found.summary()
    outcome = _finished(config, job, search, masks, state, folder)
    outcome.facts.update(facts)
    return dataclasses.replace(outcome, stop_requested=found.stop_requested is not None)


def _finished(config, job, search, masks, state, folder: pathlib.Path) -> tuning.Outcome:
    """What is left of the super-set, cut out, evaluated and saved."""
    superset, model = search.superset, state.model()
    rows = pet_masks.report(masks, superset.spec, superset.sizes)
    updates = superset.cost(masks)
    entries = None
    if search.settings.mode == "structured":
        model = superset.compacted(model, masks)
    else:
        entries = superset.entry_masks(masks)
    if jax.process_index() == 0:
        runs.write_kept(folder, rows, search.history, config.variant)
    accept = models.adapter_filter(model)
    optimizer = fitting.make_optimizer(config, model, config.steps)
    small = training.TrainState.create(model, accept, optimizer)
    facts = {
        "search": {"history": search.history, "kept": rows},
        "updates": updates,
        "steps": config.steps,
        "trained": updates + mpop.head_parameters(model),
        **_saved(model, folder, entries),
    }
    # Merged: one program evaluates whatever was kept.
    metrics = job.evaluate(compression.merge(model), job.dev)
    return tuning.Outcome(small, metrics, accept, facts)


def summary(result: dict) -> str:
    """Human-readable summary of the result."""
    metrics = tuning.listed(result["metrics"])
    lines = [
        f"{result['task']}, {result['variant'] or 'no variant name'}, seed {result['seed']}",
        f"  {metrics} on {result['dev_examples']:,} examples, after {result['steps']} steps",
    ]
    if result["search"]:
        first, last = (result["search"]["history"][k] for k in (0, -1))
        whole = first["cost"] + first["dropped"]
        lines += [
            f"  {result['updates']:,} parameters of {whole:,} kept (budget {last['budget']:,})",
            f"  the head apart; the adapter takes {result['adapter_bytes']:,} bytes",
        ]
    else:
        lines.append(f"  {result['trained']:,} of {result['total']:,} parameters trained")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    launch.run(main, base.get_config())
