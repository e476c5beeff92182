"""Two processes over loopback give the numbers of one."""

import json
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
from mpojax.training import update_statistics
from tests.training import helpers, small_encoder

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "multi_device"


def start(folder, steps, devices=2, pause=""):
    return start_two(
        "process.py", lambda index: ("2", index, folder, steps), devices=devices, pause=pause
    )


def start_encoder(folder, pause=""):
    return start_two("encoder_process.py", lambda index: (index, folder), devices=4, pause=pause)


def start_two(script, arguments, *, devices, pause):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "MPOJAX_TEST_PAUSE": pause}
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPTS / script), str(port), *map(str, arguments(index))],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]


def finish(processes, timeout=300):
    outputs = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=timeout)
            assert process.returncode == 0, errors[-3000:]
            # The transport's own lines may come at any time.
            lines = [line for line in output.splitlines() if not line.startswith("[Gloo]")]
            outputs.append("\n".join(lines))
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


@pytest.fixture(scope="module")
def encoder_alone():
    losses = small_encoder.Losses()
    mesh = training.make_mesh({"data": 1}, jax.devices()[:1])
    small_encoder.run("shared", steps=20, mesh=mesh, hooks=[losses])
    return losses.values


def last_lines(outputs):
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.slow
def test_shared_cores_on_two_processes_of_four_devices(tmp_path, encoder_alone):
    first, second = last_lines(finish(start_encoder(tmp_path), timeout=180))
    assert first == second
    assert len(first["losses"]) == 20
    np.testing.assert_allclose(first["losses"], encoder_alone, rtol=0, atol=1e-5)
    measured = update_statistics.read(tmp_path)
    assert measured["step"].tolist() == [5, 10, 15, 20]
    assert np.isfinite(measured["layer_03/auxiliary"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_one_of_two_processes_is_stopped_or_killed(tmp_path, encoder_alone, number):
    """SIGTERM: both save and end with 0. SIGKILL: the other one ends, too; the last save holds."""
    processes = start_encoder(tmp_path, pause="0.3")
    for line in processes[1].stdout:
        if line.strip() == "step 6":
            break
    processes[1].send_signal(number)
    if number == signal.SIGTERM:
        first, second = last_lines(finish(processes, timeout=180))
        assert first["stopped"] == "preempted"
        assert first["step"] == second["step"] < 20
        at = first["step"]
    else:
        processes[1].communicate()
        with pytest.raises(AssertionError):
            finish(processes[:1], timeout=180)
        with training.Checkpoints(tmp_path / "checkpoints") as saved:
            at = saved.latest_step()
        assert at == 4
    first, second = last_lines(finish(start_encoder(tmp_path), timeout=180))
    assert (first, first["step"]) == (second, 20)
    np.testing.assert_allclose(first["losses"], encoder_alone[at:], rtol=0, atol=1e-5)
