"""For libraries that know no stores: copies on this machine, logs, the array writer's spec."""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from absl import logging

from mpojax.stores import errors
from mpojax.stores.errors import attempt
from mpojax.stores.paths import StorePath, system

# Copies that were not used for a day go, the oldest first, while all take more than so many bytes.
CACHE_BYTES = int(float(os.environ.get("MPOJAX_STORE_CACHE_GIB") or 100.0) * 2**30)
_IN_USE = 24 * 3600.0  # seconds


def put_file(source: pathlib.Path, target: StorePath) -> None:
    """Puts a file of this machine, at once: large ones in parts that are joined at the end."""
    attempt(target, lambda: system(target).put_file(str(source), str(target)))


def fetch(
    source: StorePath, cache: pathlib.Path, write: Callable, names: Collection[str] = ()
) -> pathlib.Path:
    """A copy of an object, or of all below a folder, in a folder of this machine.

    Of each state of the source there is one copy: when an object changes, another one is made. What
    a killed process has fetched is not fetched again. Copies that nothing has used for a day are
    removed where all take more than `CACHE_BYTES`.

    Args:
      cache: folder of all copies.
      write: (path, function that fills a path) -> None, atomically.
      names: of objects right below a folder: no others are fetched.

    Raises:
      FileNotFoundError: there is nothing.
    """
    found = source.find()
    if names:
        found = {path: stat for path, stat in found.items() if path in {source / n for n in names}}
    if not found:
        raise FileNotFoundError(f"no object {source}, and none below it")
    listing = [(str(path), stat.st_size, stat.version) for path, stat in sorted(found.items())]
    digest = hashlib.sha256(repr([str(source), listing]).encode()).hexdigest()[:20]
    target = cache / "stores" / digest / source.name
    with contextlib.suppress(OSError):  # used now; not there yet, or of another user
        os.utime(target.parent)
    wanted = {
        target / path.relative_to(source) if path != source else target: (path, stat.st_size)
        for path, stat in found.items()
    }
    missing = {
        local: path
        for local, (path, size) in wanted.items()
        if not local.is_file() or local.stat().st_size != size
    }
    if missing:
        logging.info("fetching %d of %d objects of %s", len(missing), len(wanted), source)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(write, local, _getter(path)) for local, path in missing.items()]
    for job in jobs:
        job.result()
    if missing:
        with contextlib.suppress(OSError):  # another process may remove the same ones
            _remove_unused(target.parent.parent)
    return target


def _remove_unused(copies: pathlib.Path) -> None:
    """Removes copies, those first that were used least recently, until the others fit."""
    used = {folder: folder.stat().st_mtime for folder in copies.iterdir() if folder.is_dir()}
    sizes = {
        folder: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for folder in used
    }
    total = sum(sizes.values())
    for folder in sorted(used, key=used.get):
        if total <= CACHE_BYTES or used[folder] > time.time() - _IN_USE:
            return
        logging.info("removing a copy that nothing has used for a day: %s", folder)
        shutil.rmtree(folder, ignore_errors=True)
        total -= sizes[folder]


def _getter(path: StorePath) -> Callable[[pathlib.Path], None]:
    return lambda local: attempt(path, lambda: system(path).get_file(str(path), str(local)))


class Log:
    """A log on a store: kept in memory and put as a whole now and then.

    Nothing can be appended to an object, and parts would have to be joined by every reader; a whole
    object that is put at once is read by any tool, and a killed run leaves whole lines. It is put
    every `seconds`, and at `flush`, which comes before each checkpoint.
    """

    def __init__(self, path: StorePath, seconds: float = 30.0, content: bytes = b""):
        self.path, self.seconds, self._content = path, seconds, bytearray(content)
        # A new log is put at once, empty: the object is there, and errors come early.
        self._is_dirty, self._put = not content, time.monotonic()
        self._lock = threading.Lock()
        self.flush()

    def write(self, data: bytes) -> int:
        self._content += data
        self._is_dirty = True
        if time.monotonic() - self._put > self.seconds:
            self.flush()
        return len(data)

    def flush(self) -> None:
        with self._lock:
            if self._is_dirty:
                self.path.write_bytes(bytes(self._content))
                self._is_dirty, self._put = False, time.monotonic()

    def close(self) -> None:
        self.flush()


def array_store(folder: str | os.PathLike) -> dict[str, Any]:
    """Where the array writer of checkpoints (TensorStore) finds a folder: its `kvstore` spec."""
    scheme, _, rest = os.fspath(folder).partition("://")
    bucket, _, inside = rest.partition("/")
    # Delays double from 1 to 8 s; by default it tries for a quarter of an hour.
    retries = {"max_retries": max(1, int(errors.PATIENCE / 8.0)), "max_delay": "8s"}
    spec = {"bucket": bucket, "path": inside.rstrip("/")}
    if scheme == "gs":
        return {"driver": "gcs", **spec, "gcs_request_retries": retries}
    own = {
        "endpoint": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        "aws_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    }
    given = {name: value for name, value in own.items() if value}
    return {"driver": "s3", **spec, **given, "s3_request_retries": retries}
