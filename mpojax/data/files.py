"""Files that are either whole or absent: atomic writes with errors a user can act on."""

import errno
import hashlib
import os
import pathlib
import tempfile


def write_atomic(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a whole file through a temporary one beside it; an older file survives errors.

    Raises:
      OSError: the folder cannot be written or the disk is full; names the path and what to do.
    """
    path = pathlib.Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
        )
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            pathlib.Path(temporary).unlink(missing_ok=True)
        raise explain(error, path) from error


def explain(error: OSError, path: str | os.PathLike) -> OSError:
    """The same kind of error, naming the path and how to mend it."""
    if error.errno == errno.ENOSPC:
        advice = "the disk is full; free some space and start the same command again"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "no permission to write there; choose another folder or change its permissions"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        advice = "a file stands where a folder is needed; choose another folder"
    else:
        advice = error.strerror or str(error)
    message = f"cannot write {path}: {advice} (files already there were kept)"
    return type(error)(error.errno, message)


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> pathlib.Path:
    """Folder of downloaded data: `$MPOJAX_CACHE`, by default `~/.cache/mpojax`."""
    default = pathlib.Path.home() / ".cache" / "mpojax"
    return pathlib.Path(os.environ.get("MPOJAX_CACHE") or default).expanduser()
