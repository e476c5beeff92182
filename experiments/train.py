r"""Runs one method on one task, as its config says: tuning, compression, search, distillation, ...

    python -m experiments.train --config=configs/mpop/minilm.py:full_lfa,sst2 --workdir=runs/lfa
    python -m experiments.train --config=configs/mpop/base.py --config.model=FOLDER \
        --config.task=sst2 --config.data_dir=DATA --workdir=runs/mine

`config.method` names the method; the data that the config names, the task (see `configs/`). The
workdir gets `result.json`, `summary.txt`, metrics as JSONL and TensorBoard events, what the method
leaves, and with `--config.save_model=True` the model. Started again on its workdir an interrupted
run resumes exactly. `--dry_run` prints parameters, memory, FLOPs and the sharding of one step and
trains nothing; with `--topology=v5e:4x8` it compiles for that slice of TPUs, which need not be
there, and estimates time and memory. Several processes: see `experiments.processes`.
"""

import pathlib
import sys
import time

import ml_collections
from absl import app, flags

from experiments import command_line, dry_runs, launch, runs

check = runs.read  # what sweeps call before the first cell


def main(argv: list[str]) -> None:
    """Runs what the flags say, or says what it would cost."""
    only_cost = flags.FLAGS.dry_run
    if flags.FLAGS.topology and not only_cost:
        sys.exit("error: --topology is for --dry_run: add it, or leave --topology out.")
    with launch.session(("seed", "steps", "optimizer"), needs_workdir=not only_cost) as given:
        if only_cost:
            for text in dry_runs.texts(given[0], flags.FLAGS.topology):
                print(text)
        else:
            runs.show(given[1], run(*given))


def run(config: ml_collections.ConfigDict, folder: str | pathlib.Path) -> int:
    """One run in `folder`; 0 when `result.json` is written, 1 when a signal asked to stop.

    A folder with a run is compared first; a new one is claimed once data, model and method fit, so
    that a mistyped command leaves nothing behind. A signal in the last step finds the run finished,
    all the same nothing should follow it.
    """
    start, config = time.perf_counter(), runs.with_task_names(config)
    task, method, options = runs.read(config)
    workdir = runs.known(folder, config)
    if workdir is not None and workdir.finished:
        return 0
    setup = runs.set_up(task, method, options)
    workdir = runs.claim(workdir, folder, config, setup)
    result = method.train(setup, workdir.path)
    if result is None:
        return 1
    result = task.finish(setup, result, workdir.path)
    runs.finish(workdir, method, setup, result, time.perf_counter() - start)
    return int(result.stop_requested)


if __name__ == "__main__":
    flags.DEFINE_bool("dry_run", False, "Print what a step would cost; train nothing.")
    flags.DEFINE_string(
        "topology", "", "For --dry_run: slices of TPUs, such as v5e:4x8,v6e:2x4 (needs libtpu)."
    )
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=command_line.parse)
