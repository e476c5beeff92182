"""Files that are either whole or absent: atomic writes with errors a user can act on.

Here alone it is decided how a name is opened: `at` makes a path of this machine, or one on an
object store of `gs://...` and `s3://...` (see `stores`), and what follows takes both.
"""

import contextlib
import contextvars
import errno
import hashlib
import math
import os
import pathlib
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Sequence
from typing import Any, BinaryIO

import numpy as np

# Names of temporary files and folders start so: what a killed process leaves can be told apart.
_PREFIX = ".mpojax-"


def at(name: str | os.PathLike) -> pathlib.Path:
    """The path of a name: `~` is the home folder, gs:// and s3:// are on an object store.

    Raises:
      ValueError: another address, or one whose slashes `pathlib.Path` has joined.
      ImportError: the store's client is not installed.
    """
    name = os.fspath(name)
    if is_remote(name):
        from mpojax import stores  # loads fsspec

        return stores.at(name)
    if re.match(r"(gs|s3):/", name):
        raise ValueError(f"{name} has lost a slash; give {name.replace(':/', '://', 1)} as a text.")
    return pathlib.Path(name).expanduser()


def is_remote(name: str | os.PathLike) -> bool:
    """True of an address, such as gs://bucket/run."""
    return "://" in os.fspath(name)


def join(root: str | os.PathLike, name: str | os.PathLike) -> pathlib.Path:
    """The path of a name that may start at a folder, or be absolute, or be an address."""
    return at(name) if is_remote(name) else at(root) / pathlib.Path(name).expanduser()


def here(name: str | os.PathLike) -> pathlib.Path:
    """The path of a name on this machine, for folders that are made by one rename.

    Raises:
      ValueError: an address, where nothing can be renamed.
    """
    if is_remote(name):
        raise ValueError(f"{name}: give a folder of this machine, and copy it there afterwards")
    return at(name)


def local(name: str | os.PathLike, names: Collection[str] = ()) -> pathlib.Path:
    """The file or folder as one of this machine, for libraries that read these alone.

    What lies on a store is fetched into the folder `stores` of `cache_dir`, again only when it has
    changed there.

    Args:
      names: of files right below a folder on a store: no others are fetched.

    Raises:
      FileNotFoundError: nothing of that name is on the store.
    """
    found = at(name)
    if not is_remote(found):
        return found
    from mpojax import stores

    return stores.fetch(found, cache_dir(), write_atomic, names)


def remove_tree(folder: pathlib.Path) -> None:
    """Removes a folder with what is in it; errors and absent folders are passed over."""
    if is_remote(folder):
        with contextlib.suppress(OSError):
            folder.remove_tree()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def move(source: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a file or folder; on a store object by object, where a kill leaves both in part."""
    if is_remote(source):
        source.move(target)
    else:
        source.rename(target)


def create(path: pathlib.Path, content: str) -> None:
    """Writes a small file that is not there yet: of several processes, one succeeds.

    Raises:
      FileExistsError: it is there.
    """
    if is_remote(path):
        from mpojax import stores

        stores.create(path, content.encode("utf-8"))
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)


def renew(path: pathlib.Path) -> None:
    """Gives a file the time of now; fails where it is gone."""
    if is_remote(path):
        path.renew()
    else:
        os.utime(path)


def write_atomic(
    path: str | os.PathLike, content: str | bytes | Callable[[pathlib.Path], object]
) -> None:
    """Writes a whole file through a temporary one next to it; an older file survives errors.

    The file gets the permissions that the user's umask gives to new files. On a store one put
    does it.

    Args:
      path: its folder is made where it does not exist.
      content: text (UTF-8), bytes, or a function that writes to the temporary path it is given,
        which has the suffix of `path`.

    Raises:
      OSError: the folder cannot be written or the disk is full; names the path and what to do.
    """
    path = at(path)
    if is_remote(path):
        _put(path, content)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_beside(path) as temporary:
            fill(temporary, content)
            os.replace(temporary, path)
    except OSError as error:
        raise explain(error, path) from error


def _put(path: pathlib.Path, content: str | bytes | Callable[[pathlib.Path], object]) -> None:
    if not callable(content):
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return
    from mpojax import stores

    with temporary_folder(path) as folder:
        fill(folder / path.name, content)
        stores.put_file(folder / path.name, path)


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
    """A new folder in `parent`, removed at the end with what is still in it.

    For a parent on a store it is one of this machine.
    """
    if is_remote(parent):
        with tempfile.TemporaryDirectory(prefix="mpojax-") as made:
            yield pathlib.Path(made)
        return
    temporary = parent / f"{_PREFIX}{secrets.token_hex(8)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put(source: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a file out of a `temporary_folder` to its place, at once."""
    if is_remote(target):
        from mpojax import stores

        stores.put_file(source, target)
    else:
        os.replace(source, target)


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


def array_store(folder: str | os.PathLike) -> dict[str, Any]:
    """Where the array writer of checkpoints (TensorStore) finds a folder: its `kvstore` spec."""
    if is_remote(folder):
        from mpojax import stores

        return stores.array_store(folder)
    return {"driver": "file", "path": f"{os.fspath(folder).rstrip('/')}/"}


def open_append(path: str | os.PathLike) -> BinaryIO:
    """Opens a log for appending, see `open_own`; unbuffered, so that `close` writes nothing.

    On a store a `stores.Log`, which puts all of it every 30 s and at `flush`.
    """
    if is_remote(path):
        from mpojax import stores

        found = at(path)
        return stores.Log(found, content=found.read_bytes() if found.is_file() else b"")
    descriptor = open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    return os.fdopen(descriptor, "ab", buffering=0)


def is_leftover(path: pathlib.Path) -> bool:
    """True if the name is that of a temporary file or folder, left behind by a killed process."""
    return path.name.startswith(_PREFIX) and ".tmp" in path.suffixes


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes what killed processes left behind; on a store they leave nothing."""
    if is_remote(folder):
        return
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
    """The same kind of error, naming the path, how to fix it, and what became of the files.

    Errors of stores, which have no number, say all that already.
    """
    if error.errno is None:
        return error
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
    with at(path).open("rb") as file:
        start = file.read(200)
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise ValueError(
            f"{path} is a pointer of Git LFS, not the file itself: run git lfs pull in its folder."
        )


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file."""
    with at(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> pathlib.Path:
    """Folder of downloaded data: `$MPOJAX_CACHE`, by default `~/.cache/mpojax`."""
    default = pathlib.Path.home() / ".cache" / "mpojax"
    return pathlib.Path(os.environ.get("MPOJAX_CACHE") or default).expanduser()


_MAY_FETCH = contextvars.ContextVar("may_fetch", default=True)


def may_fetch() -> bool:
    """False within `nothing_fetched`: data and models are those that are on this machine."""
    return _MAY_FETCH.get()


@contextlib.contextmanager
def nothing_fetched():
    """A context in which no data set and no model is downloaded: what is not here is missing."""
    token = _MAY_FETCH.set(False)
    try:
        yield
    finally:
        _MAY_FETCH.reset(token)


def data_dir() -> pathlib.Path:
    """Root folder of data sets: `$MPOJAX_DATA`, by default `data` in the current folder."""
    return at(os.environ.get("MPOJAX_DATA") or "data")


class StoredArray:
    """An array of a file, read when it is asked for: `numpy.asarray(stored)`, each time anew.

    Attributes:
      shape, dtype: of the array.
    """

    def __init__(self, shape: Sequence[int], dtype: Any, read: Callable[[], np.ndarray]):
        """`read` gives the array."""
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._read = read

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """The array; numpy calls this."""
        array = self._read()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __len__(self) -> int:
        """Entries of the first axis."""
        return self.shape[0]

    def astype(self, dtype: Any) -> "StoredArray":
        """The array in another type, made when it is read."""
        return StoredArray(self.shape, dtype, lambda: self._read().astype(dtype))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)
