"""Runs in processes of their own that are told to stop, or killed."""

import errno
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest

from mpojax import training
from mpojax.training import metrics as metrics_lib
from tests.training import helpers

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "training" / "script.py"
STEPS = 30


def start(folder, pause=0.0, **environment):
    command = [sys.executable, str(SCRIPT), str(folder), str(STEPS), str(pause)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"} | environment
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(process, text):
    for line in process.stdout:
        if line.strip() == text:
            return
    pytest.fail(f"the run never said {text!r}: {process.stderr.read()[-2000:]}")


def run_here(folder):
    """The same run in this process; returns its result and the first step that it took."""
    steps = []
    report = training.Call(lambda loop: steps.append(loop.step))
    mesh = training.make_mesh(devices=jax.devices()[:1])
    hooks = [report, training.Checkpoint(every=5)]
    result = helpers.run(folder, steps=STEPS, mesh=mesh, hooks=hooks)
    return result, steps[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run on one device, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_here(folder)[0]


def assert_resumes_to_the_same_bits(folder, whole, at):
    """The run in `folder` goes on after step `at`, to the end of the one that was left alone."""
    result, first = run_here(folder)
    assert first == at + 1
    assert result.stopped is None
    assert int(result.state.step) == STEPS
    with training.Checkpoints(folder / "checkpoints") as saved:
        helpers.assert_same_bits(saved.restore(whole[1].state), whole[1].state)
    assert metrics_lib.read(folder / "metrics.jsonl") == metrics_lib.read(
        whole[0] / "metrics.jsonl"
    )


# Without this mark: a run killed within a save resumes to the same bits (below), a signal stops a
# run (the end of this file), and a stopped run resumes (test_fit.py).
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_run_resumes_to_the_same_bits(tmp_path, whole, number):
    process = start(tmp_path, pause=0.05)
    wait_for(process, "step 12")
    process.send_signal(number)
    output, errors = process.communicate(timeout=300)
    with training.Checkpoints(tmp_path / "checkpoints") as saved:
        at = saved.latest_step()
    if number == signal.SIGTERM:
        assert process.returncode == 0, errors
        assert f"stopped SIGTERM at {at}" in output
        assert 12 <= at < STEPS
    else:
        assert process.returncode == -signal.SIGKILL
        assert at in (5, 10)
    assert_resumes_to_the_same_bits(tmp_path, whole, at)


@pytest.mark.parametrize(
    "name",
    ["checkpoints/10", pytest.param("10.orbax-checkpoint-tmp/state", marks=pytest.mark.slow)],
)
def test_killed_in_the_middle_of_a_save(tmp_path, whole, name):
    """All bytes of step 10 are written, nothing is committed; the run goes on from step 5."""
    process = start(tmp_path, MPOJAX_TEST_KILL_AT=name)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, errors
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(left) == ["10.orbax-checkpoint-tmp", "5"]
    assert_resumes_to_the_same_bits(tmp_path, whole, 5)


LIMITED = """
import dataclasses, resource, signal, sys
import conftest
import jax
from mpojax import training
from tests.training import helpers

state, _ = helpers.start()
with training.Checkpoints(sys.argv[1]) as saved:
    saved.save(state)
    saved.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
    try:
        saved.save(dataclasses.replace(state, step=jax.numpy.int32(1)))
        saved.wait()
    except OSError as error:
        print(f"refused: {error}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
"""


def test_failed_write_in_the_background_keeps_the_checkpoint_before(tmp_path):
    """The system refuses files above 200 bytes, so that the array writer itself fails."""
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert f"refused: [Errno {errno.EFBIG}] cannot write {tmp_path}" in run.stdout, run.stderr
    state, _ = helpers.start()
    with training.Checkpoints(tmp_path) as saved:
        assert saved.all_steps() == [0]
        helpers.assert_same_bits(saved.restore(state), state)


def test_signal_handlers_are_put_back():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    helpers.run(steps=2, hooks=[training.StopOnSignal()])
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    hook = training.StopOnSignal()
    send = training.Call(lambda loop: os.kill(os.getpid(), signal.SIGINT), every=2)
    result = helpers.run(steps=6, hooks=[send, hook])
    assert result.stopped == "SIGINT"
    assert int(result.state.step) == 2
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
