"""One of two processes with a small encoder: `encoder_process.py PORT INDEX FOLDER WHAT`.

WHAT: `train`, 20 steps on data x fsdp x tensor = 2 x 2 x 2, saved every 4 steps; or `budget`, a run
by the clock, which in this test goes faster in process 1.
"""

import json
import os
import sys
import time
import traceback
import warnings

warnings.simplefilter("error")
sys.path.insert(0, os.getcwd())

import jax  # noqa: E402

import conftest  # noqa: F401, E402  (the same strict settings as in the tests)
from experiments import processes  # noqa: E402
from mpojax import training  # noqa: E402
from tests.training import helpers, small_encoder  # noqa: E402


def train(folder: str) -> dict:
    pause = float(os.environ.get("MPOJAX_TEST_PAUSE") or 0)

    def report(loop):
        time.sleep(pause)
        print(f"step {loop.step}", flush=True)

    losses = small_encoder.Losses()
    statistics = training.UpdateStatistics(training.roles(small_encoder.model("shared")), 5)
    result = small_encoder.run(
        "shared",
        training.Workdir(folder, {}).path,
        steps=20,
        mesh=training.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}),
        hooks=[
            losses,
            statistics,
            training.Call(report),
            training.StopOnSignal(),
            training.Checkpoint(every=4),
        ],
    )
    return {"losses": losses.values, "stopped": result.stopped, "step": int(result.state.step)}


def budget() -> dict:
    rate = 1.0 + 2.0 * jax.process_index()
    start = time.monotonic()

    def clock():
        return rate * (time.monotonic() - start)

    config = {"schedule_unit": "seconds", "budget_seconds": 3.0, "warmup_steps": 0.0}
    state, optimizer = helpers.start(steps=10**6, **config)
    shares = []
    result = training.fit(
        state,
        helpers.loss_fn,
        helpers.train_data(),
        optimizer=optimizer,
        steps=10**6,
        hooks=[
            training.TimeBudget(3.0, clock),
            training.Call(lambda loop: shares.append(loop.last_metrics.get("budget_share"))),
            training.Call(lambda loop: time.sleep(0.05)),
        ],
        log_every=1,
    )
    parameters = [float(x.sum()) for x in jax.tree.leaves(result.state.trainable)]
    return {"steps": result.steps_run, "shares": shares, "parameters": parameters}


def main() -> None:
    port, index, folder, what = sys.argv[1:]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
    try:
        made = train(folder) if what == "train" else budget()
    except Exception:
        traceback.print_exc()
        processes.leave(1)
    print(json.dumps(made), flush=True)


if __name__ == "__main__":
    main()
