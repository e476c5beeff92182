"""Two processes over loopback give the numbers of one."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from mpojax import training
from mpojax.training import metrics as metrics_lib
from tests.training import helpers

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "multi_device" / "process.py"


def start(folder, steps, devices=2, pause=""):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "MPOJAX_TEST_PAUSE": pause}
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(port), "2", str(index), str(folder), str(steps)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]


def finish(processes):
    outputs = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors[-3000:]
            outputs.append(output)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
            process.stdout.close()
            process.stderr.close()
    return outputs


def run_alone(folder=None):
    evaluator = training.Evaluator(helpers.predict, training.accuracy)
    return helpers.run(
        folder,
        steps=10,
        mesh=training.make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4]),
        rules=training.Rules(fsdp_min_size=1),
        hooks=[training.Evaluate("dev", helpers.dev_data(), evaluator)],
    )


@pytest.fixture(scope="module")
def alone():
    return run_alone()


def test_two_processes_equal_one(tmp_path, alone):
    outputs = finish(start(tmp_path, 10))
    lines = [output.splitlines()[-1].split() for output in outputs]
    assert lines[0] == lines[1]
    assert float(lines[0][1]) == pytest.approx(alone.metrics["loss"], abs=1e-6)
    assert float(lines[0][2]) == alone.metrics["dev/accuracy"]
    written = metrics_lib.read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in written] == [2, 4, 6, 8, 10, 10]  # once, by process 0
    # What two processes saved, one restores, on its own mesh.
    with training.Checkpoints(tmp_path / "checkpoints") as saved:
        restored = saved.restore(alone.state)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(alone.state), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_after_saving(tmp_path, alone):
    processes = start(tmp_path, 10, pause="0.3")
    for line in processes[1].stdout:
        if line.strip() == "step 2":
            break
    processes[1].send_signal(signal.SIGTERM)
    outputs = finish(processes)
    at = [output.splitlines()[-2] for output in outputs]
    assert at[0] == at[1]
    assert at[0].startswith("stopped preempted at ")
    assert 2 <= int(at[0].split()[-1]) < 10
    # One process goes on with what two have saved.
    result = run_alone(tmp_path)
    assert result.steps_run == 10 - int(at[0].split()[-1])
    assert result.metrics["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-6)
