"""One of several processes of a run: `process.py PORT COUNT INDEX FOLDER STEPS`."""

import os
import sys
import warnings

warnings.simplefilter("error")
sys.path.insert(0, os.getcwd())

import jax  # noqa: E402

import conftest  # noqa: F401, E402  (the same strict settings as in the tests)
from mpojax import training  # noqa: E402
from tests.training import helpers  # noqa: E402


def main() -> None:
    port, count, index, folder, steps = sys.argv[1:]
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(index))
    run = training.Workdir(folder, {"steps": int(steps)})
    evaluator = training.Evaluator(helpers.predict, training.accuracy)
    mesh = training.make_mesh({"fsdp": 2})
    slow = os.environ.get("MPOJAX_TEST_PAUSE")

    def report(loop):
        if slow:
            import time

            time.sleep(float(slow))
        print(f"step {loop.step}", flush=True)

    result = helpers.run(
        run.path,
        steps=int(steps),
        mesh=mesh,
        rules=training.Rules(fsdp_min_size=1),
        hooks=[
            training.Evaluate("dev", helpers.dev_data(), evaluator, best="accuracy"),
            training.Call(report),
            training.StopOnSignal(),
            training.Checkpoint(every=4),
        ],
    )
    print(f"stopped {result.stopped} at {int(result.state.step)}")
    print(f"metrics {result.metrics['loss']:.9f} {result.metrics.get('dev/accuracy')}", flush=True)


if __name__ == "__main__":
    main()
