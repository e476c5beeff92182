"""One of two processes with a small encoder: `encoder_process.py PORT INDEX FOLDER`.

20 steps on data x fsdp x tensor = 2 x 2 x 2, saved every 4 steps.
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
from tests.training import small_encoder  # noqa: E402


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


def main() -> None:
    port, index, folder = sys.argv[1:]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
    try:
        made = train(folder)
    except Exception:
        traceback.print_exc()
        processes.leave(1)
    print(json.dumps(made), flush=True)


if __name__ == "__main__":
    main()
