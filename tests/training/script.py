"""One run of the small classifier in a process of its own: `script.py FOLDER STEPS [SLEEP]`.

With MPOJAX_TEST_KILL_AT=NAME it kills itself where the file or folder NAME, written as a whole,
would get its final name.
"""

import os
import signal
import sys
import time
import warnings

warnings.simplefilter("error")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
sys.path.insert(0, os.getcwd())

import conftest  # noqa: F401, E402  (the same strict settings as in the tests)
from mpojax import training  # noqa: E402
from tests.training import helpers  # noqa: E402


def kill_at(name: str) -> None:
    rename = os.rename

    def renaming(source, target, *more, **options):
        if os.fspath(target).endswith(name):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(source, target, *more, **options)

    os.rename = renaming


def main() -> None:
    if "MPOJAX_TEST_KILL_AT" in os.environ:
        kill_at(os.environ["MPOJAX_TEST_KILL_AT"])
    folder, steps = sys.argv[1], int(sys.argv[2])
    pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0

    def report(loop):
        time.sleep(pause)
        print(f"step {loop.step}", flush=True)

    result = helpers.run(
        folder,
        steps=steps,
        hooks=[
            training.Call(report),
            training.StopOnSignal(),
            training.Checkpoint(every=5),
        ],
    )
    print(f"stopped {result.stopped} at {int(result.state.step)}", flush=True)


if __name__ == "__main__":
    main()
