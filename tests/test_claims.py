"""Work that several processes share: claimed once, taken over from the dead, skewed clocks."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.tables import work
from mpojax import claims

ROOT = pathlib.Path(__file__).parents[1]
TIMING = claims.Timing(beat=0.05, dead=1.0)
# Does pieces a .. f of the folder; each takes a while, and notes who did it.
WORKER = """
import os, pathlib, sys, time
from experiments.tables import work
from mpojax import claims

folder = pathlib.Path(sys.argv[1])

def run(name):
    with open(folder / "log", "a") as file:
        file.write(f"{name} {os.getpid()}\\n")
    time.sleep(float(sys.argv[2]))
    (folder / f"{name}.done").touch()
    return "done"

def is_done(name):
    return (folder / f"{name}.done").exists()

timing = claims.Timing(beat=0.05, dead=1.0)
states = work.Work("abcdef", folder / "claims", run, is_done, {"a": "f"}, timing, 0.02).share()
print(states)
"""


def start(folder, seconds):
    command = [sys.executable, "-c", WORKER, str(folder), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def log(folder):
    path = folder / "log"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_two_processes_do_each_piece_once(tmp_path):
    workers = [start(tmp_path, 0.1) for _ in range(2)]
    states = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [sorted(eval(state)) for state in states] == [list("abcdef")] * 2
    done = [name for name, _ in log(tmp_path)]
    assert sorted(done) == list("abcdef")
    assert done.index("f") < done.index("a")  # what a needs
    assert not [path for path in (tmp_path / "claims").rglob("*") if path.is_file()]


def test_a_killed_worker_is_taken_over_and_its_piece_done_again(tmp_path):
    first = start(tmp_path, 30)
    wait_for(lambda: log(tmp_path))
    second = start(tmp_path, 0)
    wait_for(lambda: len(log(tmp_path)) > 4)  # all but the claimed one, and what needs it
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second.communicate(timeout=60)
    done = [name for name, _ in log(tmp_path)]
    assert {name: done.count(name) for name in "abcdef"} == dict.fromkeys("acdef", 1) | {"b": 2}


def test_a_claim_is_held_until_it_is_released(tmp_path):
    claim = claims.take(tmp_path / "deep" / "x", TIMING)
    assert isinstance(claim, claims.Claim)
    time.sleep(1.2 * TIMING.dead)  # kept alive
    held = claims.take(tmp_path / "deep" / "x", TIMING)
    assert isinstance(held, claims.Held)
    assert f"process {os.getpid()} on " in str(held)
    claim.release()
    with claims.take(tmp_path / "deep" / "x", TIMING) as again:
        assert again.is_held()
    assert not list((tmp_path / "deep").iterdir())


def test_a_name_may_go_on_with_a_dot(tmp_path):
    with claims.take(tmp_path / "x.5", TIMING), claims.take(tmp_path / "x", TIMING) as claim:
        assert claim.path == tmp_path / "x.1"
        assert claim.is_held()
    assert not list(tmp_path.iterdir())


def test_one_of_several_takes_a_dead_claim_over(tmp_path):
    dead = tmp_path / "x.1"
    dead.write_text("process 1 on elsewhere\n")
    os.utime(dead, (0, time.time() - 60))
    claim = claims.take(tmp_path / "x", TIMING)
    assert claim.path == tmp_path / "x.2"
    assert isinstance(claims.take(tmp_path / "x", TIMING), claims.Held)
    claim.release()
    assert not list(tmp_path.iterdir())


def test_a_claim_released_while_it_is_watched_leaves_the_work_to_who_came_next(
    tmp_path, monkeypatch
):
    late = tmp_path / "x.2"
    late.write_text("process 1 on elsewhere\n")
    os.utime(late, (0, time.time() - 60))

    def watch(seconds):
        late.unlink()
        (tmp_path / "x.1").write_text("process 2 on elsewhere\n")

    monkeypatch.setattr(claims.time, "sleep", watch)
    held = claims.take(tmp_path / "x", TIMING)
    assert (held.path, held.holder) == (tmp_path / "x.1", "process 2 on elsewhere")


def test_who_slept_too_long_learns_that_another_holds_it(tmp_path):
    lost = []
    sleeper = claims.take(tmp_path / "x", TIMING, on_loss=lambda: lost.append(True))
    (tmp_path / "x.2").touch()  # as if taken over meanwhile
    wait_for(lambda: lost)
    assert not sleeper.is_held()
    sleeper.release()
    assert (tmp_path / "x.2").exists()


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_clocks_that_differ_are_named(tmp_path, seconds, monkeypatch):
    claim = claims.take(tmp_path / "x", TIMING)
    monkeypatch.setattr(claims, "_now", lambda folder: time.time() - seconds)
    with pytest.raises(ValueError, match=r"the clocks of that machine and of .* differ") as error:
        claims.take(tmp_path / "x", TIMING)
    assert "Set both (NTP), or, if nothing runs there, remove this file" in str(error.value)
    assert str(claim.path) in str(error.value)
    claim.release()


def test_failures_block_what_needs_them(tmp_path):
    done = set()

    def run(name):
        if name == "bad":
            return "failed"
        done.add(name)
        return "done"

    needs = {"next": ["bad"], "last": ["next"], "other": ["absent"], "good": ["fine"]}
    names = ["next", "last", "bad", "other", "good", "fine"]
    states = work.Work(names, tmp_path, run, done.__contains__, needs, TIMING, 0.01).share()
    expected = dict.fromkeys(("next", "last", "other"), "blocked") | {"bad": "failed"}
    assert states == expected | dict.fromkeys(("good", "fine"), "done")
    marks = {"bad": iter((1, 2)), "good": iter((1, 1)), "fine": iter((None, None))}
    others = work.Work(
        *(list(marks), tmp_path, lambda name: "done", lambda name: False),
        failure=lambda name: next(marks[name]),
        timing=TIMING,
    )
    # What another process failed at meanwhile is not tried again; what failed before is.
    assert others.share() == {"bad": "failed", "good": "done", "fine": "done"}
    stopped = work.Work(["x"], tmp_path, lambda name: "stopped", done.__contains__).share()
    assert stopped is None
