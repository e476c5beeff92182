"""Locks on folders: of two processes that work in one by mistake, the second is told so.

A file system locks files itself and frees them when a process dies. An object store knows no locks:
there a folder is held by a claim (see `claims`), which a thread renews; that of a process which
died is taken over once it has not been renewed for a while.
"""

import concurrent.futures.thread  # noqa: F401 (its end must come after that of `release_all`)
import datetime
import errno
import fcntl
import os
import pathlib
import platform
import threading

from absl import logging

from mpojax import claims, files

NAME = ".lock"
# Of claims on stores: a command that is started again at once waits for `dead` and two beats.
TIMING = claims.Timing(beat=10.0, dead=60.0)

# Files that this process holds locked: {folder: file descriptor}. A record lock is lost when any
# descriptor of its file is closed, so there is only one, and whoever asks again shares it.
_held: dict[pathlib.Path, int] = {}
_claimed: dict[pathlib.Path, claims.Claim] = {}  # of folders on stores


def hold(folder: str | os.PathLike) -> None:
    """Locks a folder for this process until `release`, or until the process ends, however it does.

    The system frees the locks of a dead process; the file `.lock` that it leaves means nothing. On
    a store this may wait for a claim to die, see `TIMING`. Asking again in the same process changes
    nothing.

    Raises:
      ValueError: another process holds it; says which. Or the lock is a link to another file.
    """
    folder = files.at(folder).absolute()
    if files.is_remote(folder):
        _claim(folder)
        return
    if _is_held(folder):
        return
    descriptor = files.open_own(folder / NAME, os.O_RDWR | os.O_CREAT, hard_links=True)
    try:
        _lock(descriptor)
    except OSError as error:
        owner = os.read(descriptor, 200).decode("utf-8", "replace").strip()
        os.close(descriptor)
        # By POSIX one of these two means that another process holds the lock.
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            logging.warning("%s: this file system has no locks (%s)", folder, error.strerror)
            return
        raise ValueError(_taken(folder, owner or "unknown")) from error
    if os.fstat(descriptor).st_nlink > 1:
        descriptor = _renewed(folder / NAME, descriptor)
    now = datetime.datetime.now().isoformat(timespec="seconds")
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}, since {now}\n".encode())
    _held[folder] = descriptor


def release(folder: str | os.PathLike) -> None:
    """Frees a folder that this process holds; does nothing for others."""
    folder = files.at(folder).absolute()
    descriptor, claim = _held.pop(folder, None), _claimed.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)
    if claim is not None:
        claim.release()


def release_all() -> None:
    """Frees what this process holds."""
    for folder in [*_held, *_claimed]:
        try:
            release(folder)
        except OSError as error:
            logging.warning("%s could not be freed (%s): it stays held for a while", folder, error)


# Not `atexit`: by then the clients of stores cannot start threads any more.
threading._register_atexit(release_all)


def _claim(folder: pathlib.Path) -> None:
    if folder in _claimed and _claimed[folder].is_held():
        return
    found = claims.wait(folder / NAME, TIMING, lambda: _lost(folder))
    if isinstance(found, claims.Held):
        raise ValueError(_taken(folder, str(found)))
    _claimed[folder] = found


def _lost(folder: pathlib.Path) -> None:
    """Ends the process: another one writes to the folder now."""
    os.write(2, f"error: another run has taken {folder} over; this one ends\n".encode())
    os._exit(75)  # EX_TEMPFAIL; no clean-up, which would write to the folder


def _taken(folder: pathlib.Path, owner: str) -> str:
    return (
        f"another run is at work in {folder} ({owner}); wait for it, stop it, or use another "
        "--workdir"
    )


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
