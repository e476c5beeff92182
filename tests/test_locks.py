"""Two processes in one folder."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from mpojax import locks, training

ROOT = pathlib.Path(__file__).parents[1]
HOLD = """
import sys, time
from mpojax import locks

locks.hold(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that works in the folder."""
    training.Workdir(tmp_path, {"a": 1})
    locks.release(tmp_path)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path, holder):
    before = (tmp_path / "versions.json").read_text()
    for config in ({"a": 1}, {"a": 2}):
        with pytest.raises(ValueError, match="another run is at work in") as error:
            training.Workdir(tmp_path, config)
        assert f"process {holder.pid} on " in str(error.value)
        assert "use another --workdir" in str(error.value)
    assert (tmp_path / "versions.json").read_text() == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / locks.NAME).exists()  # left by the dead one
    assert training.Workdir(tmp_path, {"a": 1}).resuming


def can_lock(folder):
    """Whether another process, which knows nothing of this library, gets the system's lock."""
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", code, str(folder / locks.NAME)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 or "BlockingIOError" in ended.stderr, ended.stderr
    return ended.returncode == 0


def test_free_again_with_the_result_and_shared_within_a_process(tmp_path):
    run = training.Workdir(tmp_path, {"a": 1})
    training.Workdir(tmp_path, {"a": 1})
    assert not can_lock(tmp_path)
    run.write_result({})
    assert can_lock(tmp_path)
    locks.release(tmp_path)  # of what is not held: nothing


def test_folder_made_again_is_locked_again(tmp_path):
    folder = tmp_path / "run"
    training.Workdir(folder, {"a": 1})
    shutil.rmtree(folder)
    training.Workdir(folder, {"a": 1})
    assert not can_lock(folder)
    locks.release(folder)


def test_refused_folders_stay_free(tmp_path):
    training.Workdir(tmp_path, {"a": 1}).write_result({})
    with pytest.raises(ValueError, match="another experiment"):
        training.Workdir(tmp_path, {"a": 2})
    assert can_lock(tmp_path)


@pytest.mark.parametrize("kind", ["soft", "dangling"])
def test_a_lock_that_is_a_link(tmp_path, kind):
    """What it leads to is never overwritten."""
    target, link = tmp_path / "precious", tmp_path / "run" / locks.NAME
    link.parent.mkdir()
    if kind != "dangling":
        target.write_text("kept")
    link.symlink_to(target)
    for take in (locks.hold, lambda folder: training.Workdir(folder, {"a": 1})):
        with pytest.raises(ValueError, match=r"\.lock is a symbolic link"):
            take(link.parent)
    assert [p.name for p in link.parent.iterdir()] == [locks.NAME]
    if kind == "dangling":
        assert not target.exists()
    else:
        assert target.read_text() == "kept"


def test_a_lock_that_has_another_name(tmp_path):
    """A file of its own takes its place: what is written is not seen under the other name."""
    target, lock = tmp_path / "precious", tmp_path / "run" / locks.NAME
    lock.parent.mkdir()
    target.write_text("kept")
    lock.hardlink_to(target)
    training.Workdir(lock.parent, {"a": 1})
    assert target.read_text() == "kept"
    assert target.stat().st_nlink == 1
    assert not can_lock(lock.parent)
    locks.release(lock.parent)
    assert can_lock(lock.parent)
    assert sorted(path.name for path in lock.parent.iterdir()) == [
        *(locks.NAME, "config.json", "versions.json")
    ]


def test_a_lock_with_another_name_that_is_held(tmp_path, holder):
    (tmp_path / "copy").hardlink_to(tmp_path / locks.NAME)
    before = (tmp_path / "copy").read_text()
    with pytest.raises(ValueError, match=f"another run is at work in.*process {holder.pid} on "):
        training.Workdir(tmp_path, {"a": 1})
    assert (tmp_path / "copy").read_text() == before
    assert (tmp_path / locks.NAME).samefile(tmp_path / "copy")


def test_without_locks_of_the_file_system(tmp_path, monkeypatch, caplog):
    def unsupported(*unused):
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(locks.fcntl, "lockf", unsupported)
    locks.hold(tmp_path)
    assert "this file system has no locks" in caplog.text
