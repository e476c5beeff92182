"""Files that are either whole or absent: atomic writes with errors a user can act on."""

import contextlib
import errno
import hashlib
import os
import pathlib
import secrets
import shutil
import stat
from collections.abc import Callable
from typing import BinaryIO

# Names of temporary files and folders start so: what a killed process leaves can be told apart.
_PREFIX = ".mpojax-"


def write_atomic(
    path: str | os.PathLike, content: str | bytes | Callable[[pathlib.Path], object]
) -> None:
    """Writes a whole file through a temporary one next to it; an older file survives errors.

    The file gets the permissions that the user's umask gives to new files.

    Args:
      path: its folder is made where it does not exist.
      content: text (UTF-8), bytes, or a function that writes to the temporary path it is given,
        which has the suffix of `path`.

    Raises:
      OSError: the folder cannot be written or the disk is full; names the path and what to do.
    """
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_beside(path) as temporary:
            fill(temporary, content)
            os.replace(temporary, path)
    except OSError as error:
        raise explain(error, path) from error


@contextlib.contextmanager
def temporary_beside(path: pathlib.Path):
    """A path in the folder of `path`, with its suffix; a file there is removed unless renamed."""
    temporary = path.parent / f"{_PREFIX}{secrets.token_hex(8)}.tmp{path.suffix}"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(parent: pathlib.Path):
    """A new folder in `parent`, removed at the end with what is still in it."""
    temporary = parent / f"{_PREFIX}{secrets.token_hex(8)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_own(path: str | os.PathLike, flags: int, *, hard_links: bool = False) -> int:
    """Opens a file that is written in place, such as a lock or a log, never through a link.

    Where someone else may write to the folder, a link there would let them choose what this process
    overwrites.

    Args:
      path: made where it does not exist, if `flags` has O_CREAT.
      flags: of `os.open`.
      hard_links: whether the file may have other names; nothing may be written then.

    Returns:
      The file descriptor.

    Raises:
      ValueError: a link, also a hard one, or no regular file stands there.
      OSError: it cannot be opened.
    """
    try:
        # Non-blocking: a named pipe would wait for a reader for ever.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(
                f"{path} is a symbolic link, through which another file would be overwritten: "
                "remove it (the whole folder may be reached through a link)"
            ) from error
        raise
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and (hard_links or found.st_nlink <= 1):
        return descriptor
    os.close(descriptor)
    what = "has another name (a hard link)" if stat.S_ISREG(found.st_mode) else "is no regular file"
    raise ValueError(f"{path} {what}, which would be overwritten: remove it, or use another folder")


def open_append(path: str | os.PathLike) -> BinaryIO:
    """Opens a log for appending, see `open_own`; unbuffered, so that `close` writes nothing."""
    descriptor = open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    return os.fdopen(descriptor, "ab", buffering=0)


def is_leftover(path: pathlib.Path) -> bool:
    """True if the name is that of a temporary file or folder, left behind by a killed process."""
    return path.name.startswith(_PREFIX) and ".tmp" in path.suffixes


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes what killed processes left behind."""
    for path in folder.iterdir():
        if is_leftover(path) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif is_leftover(path):
            path.unlink(missing_ok=True)


def fill(path: pathlib.Path, content: str | bytes | Callable[[pathlib.Path], object]) -> None:
    """Writes a new file, not atomically, and waits until it is on the disk."""
    # Not tempfile.mkstemp, whose files are private to the user whatever the umask says.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    if callable(content):
        mode = stat.S_IMODE(path.stat().st_mode)
        content(path)
        path.chmod(mode)  # Some writers put a private file in its place.
    else:
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def explained(path: str | os.PathLike):
    """Errors of the file system inside it are raised as `explain` has them."""
    try:
        yield
    except OSError as error:
        raise explain(error, path) from error


def explain(
    error: OSError, path: str | os.PathLike, note: str = "files already there were kept"
) -> OSError:
    """The same kind of error, naming the path, how to fix it, and what became of the files."""
    if error.errno == errno.ENOSPC:
        advice = "the disk is full; free some space and start the same command again"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "no permission to write there; choose another folder or change its permissions"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        advice = "a file stands where a folder is needed; choose another folder"
    else:
        advice = error.strerror or str(error)
    return type(error)(error.errno, f"cannot write {path}: {advice} ({note})")


def check_fetched(path: str | os.PathLike) -> None:
    """Raises ValueError for the text that Git LFS leaves in place of a file it has not fetched."""
    with open(path, "rb") as file:
        start = file.read(200)
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise ValueError(
            f"{path} is a pointer of Git LFS, not the file itself: run git lfs pull in its folder."
        )


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> pathlib.Path:
    """Folder of downloaded data: `$MPOJAX_CACHE`, by default `~/.cache/mpojax`."""
    default = pathlib.Path.home() / ".cache" / "mpojax"
    return pathlib.Path(os.environ.get("MPOJAX_CACHE") or default).expanduser()


def data_dir() -> pathlib.Path:
    """Root folder of data sets: `$MPOJAX_DATA`, by default `data` in the current folder."""
    return pathlib.Path(os.environ.get("MPOJAX_DATA") or "data").expanduser()
