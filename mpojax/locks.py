"""Locks on folders: of two processes that work in one by mistake, the second is told so."""

import datetime
import errno
import fcntl
import os
import pathlib
import platform

from absl import logging

from mpojax import files

NAME = ".lock"

# Files that this process holds locked: {folder: file descriptor}. A record lock is lost when any
# descriptor of its file is closed, so there is only one, and whoever asks again shares it.
_held: dict[pathlib.Path, int] = {}


def hold(folder: str | os.PathLike) -> None:
    """Locks a folder for this process until `release`, or until the process ends, however it does.

    The system frees the locks of a dead process; the file `.lock` that it leaves means nothing.
    Asking again in the same process changes nothing.

    Raises:
      ValueError: another process holds it; says which. Or the lock is a link to another file.
    """
    folder = pathlib.Path(folder).absolute()
    if _is_held(folder):
        return
    descriptor = files.open_own(folder / NAME, os.O_RDWR | os.O_CREAT, hard_links=True)
    try:
        _lock(descriptor)
    except OSError as error:
        owner = os.read(descriptor, 200).decode("utf-8", "replace").strip()
        os.close(descriptor)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            logging.warning("%s: this file system has no locks (%s)", folder, error.strerror)
            return
        raise ValueError(
            f"another run is at work in {folder} ({owner or 'unknown'}); wait for it, stop it, or "
            "use another --workdir"
        ) from error
    if os.fstat(descriptor).st_nlink > 1:
        descriptor = _renewed(folder / NAME, descriptor)
    now = datetime.datetime.now().isoformat(timespec="seconds")
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}, since {now}\n".encode())
    _held[folder] = descriptor


def release(folder: str | os.PathLike) -> None:
    """Frees a folder that this process holds; does nothing for others."""
    descriptor = _held.pop(pathlib.Path(folder).absolute(), None)
    if descriptor is not None:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _renewed(path: pathlib.Path, descriptor: int) -> int:
    """A new locked file in place of a locked one that has other names, and stays as it is there.

    A folder that was copied with `cp -al` shares its files with the copy.
    """
    with files.temporary_beside(path) as temporary:
        # Locked before it can be found: no other process gets in between.
        own = files.open_own(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        _lock(own)
        os.replace(temporary, path)
    os.close(descriptor)
    return own


def _is_held(folder: pathlib.Path) -> bool:
    if folder not in _held:
        return False
    try:
        there, mine = os.lstat(folder / NAME), os.fstat(_held[folder])
    except OSError:
        there = mine = None
    if there is not None and (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev):
        return True
    release(folder)  # the folder was removed and made again
    return False
