"""The VADER movie snippets: cache, hash, parsing, and once the real thing."""

import io
import shutil
import subprocess
import tarfile

import numpy as np
import pytest

from mpojax import data, files
from mpojax.data.sources import packages, vader

ROWS = [f"{i}\t{(i % 5) - 2}.5\tfilm number {i} é\r" for i in range(200)] + ["999\t0.0\tneutral\r"]


def archive_bytes(table: str = "\n".join(ROWS), inner_name: str | None = None) -> bytes:
    def tar(name: str, content: bytes) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    return tar(inner_name or vader._INNER, tar(vader._TABLE, table.encode()))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A fake package index; counts how often it is asked."""
    import hashlib

    content = archive_bytes()
    asked = []
    monkeypatch.setenv("MPOJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        vader, "ARCHIVE", vader.ARCHIVE._replace(sha256=hashlib.sha256(content).hexdigest())
    )
    monkeypatch.setattr(packages, "fetch", lambda _: asked.append(1) or content)
    return asked


def test_loads_and_splits(index):
    task = data.load_task("vader_movie")
    texts = [text for split in task.splits.values() for text in split.texts]
    assert sorted(texts) == sorted(f"film number {i} é" for i in range(200))  # no sign: left out
    for name, split in task.splits.items():
        for text, label in zip(split.texts, split.labels, strict=True):
            assert vader.split_of(text) == name
            assert label == (int(text.split()[2]) % 5 - 2 + 0.5 > 0)
    assert len(task["train"]) > len(task["dev"]) > 0


def test_second_use_is_offline(index, monkeypatch):
    data.load_task("vader_movie")
    monkeypatch.setattr(packages, "fetch", lambda _: pytest.fail("asked the network again"))
    data.load_task("vader_movie")
    assert index == [1]


def test_corrupt_cache_is_fetched_again(index):
    path = packages.cached(vader.ARCHIVE)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert packages.cached(vader.ARCHIVE).read_bytes() == whole
    assert len(index) == 2
    assert [p.name for p in path.parent.iterdir()] == [vader.ARCHIVE.file]


def test_wrong_hash_from_the_index_is_refused(index, monkeypatch):
    monkeypatch.setattr(packages, "fetch", lambda _: b"something else")
    with pytest.raises(ValueError, match=r"expected .*: not used"):
        packages.cached(vader.ARCHIVE)
    assert not (files.cache_dir() / vader.ARCHIVE.file).exists()


def test_cache_that_cannot_be_written(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MPOJAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="a file stands where a folder is needed"):
        packages.cached(vader.ARCHIVE)


@pytest.mark.parametrize("failure", ["error", "time-out"])
def test_no_network_says_how_to_do_it_by_hand(tmp_path, monkeypatch, failure):
    monkeypatch.setenv("MPOJAX_CACHE", str(tmp_path))

    def run(command, **unused):
        assert "--require-hashes" in command
        if failure == "time-out":
            raise subprocess.TimeoutExpired(command, 300)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no matching distribution")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ConnectionError, match="by hand") as error:
        data.load_task("vader_movie")
    assert str(tmp_path) in str(error.value)
    assert vader.ARCHIVE.sha256 in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive_bytes(inner_name="other"), "does not hold"),
        (archive_bytes("1\t2"), "line 1: 2 fields, expected 3"),
        (b"no archive", "does not hold"),
    ],
)
def test_unexpected_content(tmp_path, content, message):
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        vader.parse(tmp_path / "x.tar.gz")


def test_the_real_set(tmp_path, monkeypatch):
    cached = files.cache_dir() / vader.ARCHIVE.file
    if not cached.is_file():  # fetched once per machine, not once per test run
        try:
            packages.cached(vader.ARCHIVE)
        except ConnectionError as error:
            pytest.skip(f"no package index: {str(error).splitlines()[0]}")
    shutil.copy(cached, tmp_path)
    monkeypatch.setenv("MPOJAX_CACHE", str(tmp_path))
    assert len(vader.parse(packages.cached(vader.ARCHIVE))) == 10_605
    task = data.load_task("vader_movie")
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 8_463,
        "dev": 1_069,
        "test": 1_036,
    }
    labels = np.concatenate([split.labels for split in task.splits.values()])
    assert labels.sum() == 5_242
