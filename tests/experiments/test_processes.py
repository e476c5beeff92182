"""Several processes from the command line."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from experiments import peers, processes

ROOT = pathlib.Path(__file__).parents[2]
MAIN = """
    import sys
    from experiments import launch

    def main(config, folder):
        import jax
        from absl import logging
        from mpojax import training

        if config.mistake == "everywhere":
            raise ValueError(f"a mistake seen by {jax.process_index()}")
        training.Workdir(folder, {"a": 1})
        if config.mistake.startswith("killed"):
            import os, signal
            import numpy as np
            from jax.experimental import multihost_utils
            for step in range(1000):
                multihost_utils.broadcast_one_to_all(np.ones(3))
                if step == 5 and config.mistake == f"killed {jax.process_index()}":
                    os.kill(os.getpid(), signal.SIGKILL)
        if config.mistake == "one" and jax.process_index() == 1:
            raise OSError("no data here")
        if config.mistake == "one":
            import numpy as np
            from jax.experimental import multihost_utils
            multihost_utils.broadcast_one_to_all(np.ones(3))
        print(f"{jax.process_count()} processes, {jax.device_count()} devices")
        logging.info("said by %d", jax.process_index())
        logging.warning("warned by %d", jax.process_index())
        return 0

    launch.run(main)
"""
CONFIG = """
import ml_collections

def get_config():
    return ml_collections.ConfigDict({"mistake": ""})
"""


class TestArguments:
    def test_none_and_all(self):
        assert processes.arguments(None, None, None, False) is None
        assert processes.arguments("host:9000", 4, 3, False, 7) == {
            "coordinator_address": "host:9000",
            "num_processes": 4,
            "process_id": 3,
            "initialization_timeout": 7,
        }
        assert processes.arguments(None, None, None, True) == {"initialization_timeout": 300}

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (("h:1", None, None, False), "--num_processes, --process_id are missing"),
            (("h:1", 2, None, False), "needs --coordinator, .* --process_id is missing"),
            ((None, 2, 0, False), "--coordinator is missing"),
            (("h:1", 2, 0, True), r"leave out --coordinator, --num_processes, --process_id"),
            ((None, 2, None, True), r"--distributed takes everything .*leave out --num_processes$"),
            (("h", 2, 0, False), "--coordinator=h must be HOST:PORT"),
            (("h:port", 2, 0, False), "--coordinator=h:port must be HOST:PORT"),
            ((":80", 2, 0, False), "must be HOST:PORT"),
            (("h:99999", 2, 0, False), "must be HOST:PORT"),
            (("h:1", 2, 2, False), r"--process_id=2 must lie in 0..1"),
            (("h:1", 2, -1, False), r"--process_id=-1 must lie in 0..1"),
            (("h:1", 0, 0, False), "--num_processes=0 at least 1"),
            ((None, None, None, False, 0), "--start_timeout=0 must be at least 1"),
        ],
    )
    def test_mistakes(self, given, message):
        with pytest.raises(ValueError, match=message):
            processes.arguments(*given)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(tmp_path, *flags, mistake="", **environment):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    command = [sys.executable, "-c", textwrap.dedent(MAIN), f"--config={config}"]
    command += [f"--config.mistake={mistake}", f"--workdir={tmp_path / 'run'}", *flags]
    changes = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3"}
    return subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | changes | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(running, timeout=300):
    """[(status, standard output, standard error)]"""
    made = []
    try:
        for process in running:
            output, errors = process.communicate(timeout=timeout)
            made.append((process.returncode, output, errors))
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return made


def two(tmp_path, **more):
    address = f"--coordinator=127.0.0.1:{free_port()}"
    return [
        start(tmp_path, address, "--num_processes=2", f"--process_id={i}", **more) for i in (0, 1)
    ]


def test_a_process_that_ends_first_still_hears_the_farewell_of_the_other():
    """Else the first would take the end of the second for a loss."""
    ours, theirs = socket.socketpair()
    watching = object.__new__(peers.Peers)
    watching._others, watching._ended, watching._token = {}, set(), "secret"
    theirs.sendall(b"secret 1\nbye\n")  # both in one packet
    assert watching._hear(ours)
    assert watching._others == {ours: 1}
    watching.farewell()
    assert theirs.recv(99) == b"bye\n"
    theirs.close()
    assert not watching._hear(ours)  # no `_leave`, which would end this process
    ours.close()


def test_two_processes_and_only_the_first_speaks(tmp_path):
    first, second = finish(two(tmp_path))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1].count("2 processes, 6 devices") == 1  # Gloo writes there too, in between
    assert "processes" not in second[1]
    assert "said by 0" in first[2]
    assert "said by" not in second[2]
    assert "warned by 1" in second[2]


@pytest.mark.slow
def test_a_mistake_that_all_make_ends_all_with_its_message(tmp_path):
    for index, (status, _, errors) in enumerate(finish(two(tmp_path, mistake="everywhere"))):
        assert status == 2, errors
        assert f"error: a mistake seen by {index}" in errors
        assert "Traceback" not in errors


@pytest.mark.slow
def test_a_mistake_of_one_ends_the_others_too(tmp_path):
    first, second = finish(two(tmp_path, mistake="one"), timeout=60)
    assert second[0] == 2
    assert "error: no data here" in second[2]
    assert first[0] != 0


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_with_one_line(tmp_path, killed):
    running = two(tmp_path, mistake=f"killed {killed}")
    running[killed].communicate(timeout=60)
    assert running[killed].returncode == -signal.SIGKILL
    start = time.monotonic()
    [(status, _, errors)] = finish([running[1 - killed]], timeout=30)
    assert time.monotonic() - start < 10
    assert status == 2, errors
    said = [line for line in errors.splitlines() if "INFO" not in line and line[:1] != "I"]
    assert said == [
        f"error: process {killed} of 2 is gone (see what it said last), and process {1 - killed} "
        "ends with it; the same command, for all processes, resumes the run"
    ]


@pytest.mark.slow
def test_nobody_listens(tmp_path):
    flags = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--process_id=1")
    [(status, _, errors)] = finish([start(tmp_path, *flags, "--start_timeout=2")])
    assert status == 2, errors
    assert "error: process 0 does not answer at --coordinator=127.0.0.1" in errors


@pytest.mark.slow
def test_slurm(tmp_path):
    """What SLURM sets for two tasks on one host; the port is made from the job's number."""
    job = str(free_port() % 4096)
    common = {"SLURM_JOB_ID": job, "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    common |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "2"}
    running = [
        start(tmp_path, "--distributed", **common, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
        for i in (0, 1)
    ]
    first, second = finish(running)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1].count("2 processes, 6 devices") == 1  # Gloo writes there too, in between
