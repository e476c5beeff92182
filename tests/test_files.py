"""Atomic writes: whole files, ordinary permissions, nothing left behind."""

import os
import stat

import pytest

from mpojax import files


def test_whole_files_are_replaced(tmp_path):
    path = tmp_path / "a" / "b.txt"
    files.write_atomic(path, "one ü")
    assert path.read_text(encoding="utf-8") == "one ü"
    files.write_atomic(path, b"two")
    assert path.read_text(encoding="utf-8") == "two"
    files.write_atomic(path, lambda temporary: temporary.write_text("three", encoding="utf-8"))
    assert path.read_text(encoding="utf-8") == "three"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_are_those_of_any_new_file(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        files.write_atomic(tmp_path / "text", "x")
        files.write_atomic(tmp_path / "made", lambda path: path.write_bytes(b"x"))
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


def test_writers_see_the_suffix_and_leave_nothing_when_they_fail(tmp_path):
    path = tmp_path / "figure.png"
    files.write_atomic(path, "old")

    def fail(temporary):
        assert temporary.suffix == ".png"
        assert files.is_leftover(temporary)
        temporary.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(path, fail)
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
    assert not files.is_leftover(path)


def test_a_file_in_the_way_is_named(tmp_path):
    files.write_atomic(tmp_path / "file", "kept")
    with pytest.raises(OSError, match=r"cannot write .*file/x: a file stands where a folder is"):
        files.write_atomic(tmp_path / "file" / "x", "new")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"
