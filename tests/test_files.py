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


@pytest.fixture
def precious(tmp_path):
    """A file that must stay."""
    path = tmp_path / "precious"
    path.write_text("kept\n", encoding="utf-8")
    yield path
    assert path.read_text(encoding="utf-8") == "kept\n"
    assert os.stat(path).st_nlink == len(list(tmp_path.rglob("*hard*"))) + 1


def test_whole_files_replace_links_and_leave_what_they_lead_to(tmp_path, precious):
    for name in ("soft", "hard"):
        path = tmp_path / "run" / name
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(precious) if name == "soft" else path.hardlink_to(precious)
        files.write_atomic(path, "new")
        assert not path.is_symlink()
        assert path.read_text(encoding="utf-8") == "new"
        path.unlink()


def test_new_files_are_never_made_through_links(tmp_path, precious):
    for target in (precious, tmp_path / "absent"):
        link = tmp_path / "link"
        link.symlink_to(target)
        with pytest.raises(FileExistsError):
            files.fill(link, "new")
        link.unlink()
    assert not (tmp_path / "absent").exists()


def test_files_written_in_place_are_no_links(tmp_path, precious):
    soft, dangling, hard, pipe = (tmp_path / n for n in ("soft", "dangling", "hard", "pipe"))
    soft.symlink_to(precious)
    dangling.symlink_to(tmp_path / "absent")
    hard.hardlink_to(precious)
    os.mkfifo(pipe)
    for path in (soft, dangling):
        with pytest.raises(ValueError, match=f"{path.name} is a symbolic link.*remove it"):
            files.open_append(path)
    with pytest.raises(ValueError, match=r"hard has another name \(a hard link\).*remove it"):
        files.open_append(hard)
    with pytest.raises(OSError, match="pipe"):
        files.open_append(pipe)
    assert not (tmp_path / "absent").exists()
    with files.open_append(tmp_path / "new") as file:
        file.write(b"x")
    with files.open_append(tmp_path / "new") as file:
        file.write(b"y")
    assert (tmp_path / "new").read_text(encoding="utf-8") == "xy"


def test_leftovers_that_are_links_go_alone(tmp_path, precious):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("kept")
    for name, target in ((".mpojax-1.tmp", "folder"), (".mpojax-2.tmp.txt", "precious")):
        (tmp_path / name).symlink_to(tmp_path / target)
    files.remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "precious"]
    assert (tmp_path / "folder" / "file").read_text() == "kept"
