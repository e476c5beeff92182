"""Paths on stores."""

import contextlib
import dataclasses
import functools
import glob
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
from absl import logging
from etils import epath
from etils.epath import gpath

from mpojax.stores.errors import attempt

SCHEMES = ("gs", "s3")


@dataclasses.dataclass(frozen=True)
class Stat:
    """What a store says of an object.

    Attributes:
      st_size: bytes.
      st_mtime: seconds since 1970 by the store's clock.
      version: another one after each put.
    """

    st_size: int
    st_mtime: float
    version: str

    @property
    def st_mtime_ns(self) -> int:
        return int(self.st_mtime * 1e9)


def _stat(info: Mapping[str, Any]) -> Stat:
    changed = info.get("LastModified") or info.get("mtime")
    stamp = changed.timestamp() if changed else 0.0
    return Stat(info["size"], stamp, str(info.get("generation") or f"{info.get('ETag')} {stamp}"))


class StorePath(gpath.PosixGPath):
    """A path on an object store; reads as `pathlib.Path` does, and writes whole objects."""

    def absolute(self) -> "StorePath":
        return self

    def expanduser(self) -> "StorePath":
        return self

    def resolve(self, strict: bool = False) -> "StorePath":
        return self

    def is_symlink(self) -> bool:
        return False

    def exists(self) -> bool:
        return self._call("exists")

    def is_dir(self) -> bool:
        return self._call("isdir")

    def is_file(self) -> bool:
        return self._call("isfile")

    def iterdir(self) -> Iterator["StorePath"]:
        """What is right below it: nothing, too, where there is no such folder."""
        try:
            found = self._call("ls", detail=False)
        except FileNotFoundError:
            return iter(())
        own = str(self).partition("://")[2].rstrip("/")  # a store may list the folder itself
        names = {name.rstrip("/") for name in found} - {own}
        return iter(self._at(name) for name in sorted(names))

    def glob(self, pattern: str) -> Iterator["StorePath"]:
        found = attempt(self, lambda: system(self).glob(f"{glob.escape(str(self))}/{pattern}"))
        return iter(self._at(name) for name in found)

    def rglob(self, pattern: str) -> Iterator["StorePath"]:
        return (path for path in map(self._at, self._call("find")) if path.match(pattern))

    def mkdir(self, *unused, **options) -> None:
        """Does nothing: there are no folders."""

    def rmdir(self) -> None:
        """Does nothing: there are no folders."""

    def stat(self) -> Stat:
        return _stat(self._call("info"))

    def open(self, mode: str = "r", encoding: str | None = None, newline: str | None = None, **_):
        """The whole object in memory; to be read only."""
        if set(mode) - set("rbt"):
            raise ValueError(f"{self}: open(mode={mode!r}) cannot write; use files.write_atomic.")
        content = io.BytesIO(self._call("cat_file"))
        if "b" in mode:
            return content
        return io.TextIOWrapper(content, encoding=encoding or "utf-8", newline=newline)

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes of an object without the rest of it."""
        return self._call("cat_file", start=start, end=end)

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        with self.open(encoding=encoding) as file:
            return file.read()

    def write_bytes(self, data: bytes) -> int:
        self._call("pipe_file", bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, **_) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def unlink(self, missing_ok: bool = False) -> None:
        with contextlib.suppress(*[FileNotFoundError] * missing_ok):
            self._call("rm_file")

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Puts an empty object where there is none; what is there stays as it is."""
        with contextlib.suppress(*[FileExistsError] * exist_ok):
            create(self, b"")

    def renew(self) -> None:
        """Gives an object a new version; fails where it is gone, unlike a new put."""
        # S3 refuses to copy an object onto itself unless something is replaced.
        more = {"MetadataDirective": "REPLACE"} if self._uri_scheme == "s3" else {}
        self._call("cp_file", str(self), **more)

    def find(self) -> dict["StorePath", Stat]:
        """All objects below it, at any depth."""
        return {self._at(n): _stat(info) for n, info in self._call("find", detail=True).items()}

    def move(self, target: "StorePath") -> None:
        """Copies it, or all objects below it, to another place, then removes them here."""
        for each in self.find():
            inside = target / each.relative_to(self) if each != self else target
            each._call("cp_file", str(inside))
        self.remove_tree()

    def remove_tree(self) -> None:
        """Removes all objects below it."""
        for name in self._call("find"):
            self._at(name).unlink(missing_ok=True)

    def _at(self, name: str) -> "StorePath":
        return type(self)(f"{self._uri_scheme}://{name}")

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        return attempt(self, lambda: getattr(system(self), name)(str(self), *args, **options))


def at(address: str) -> StorePath:
    """The path of an address.

    Raises:
      ValueError: not gs:// or s3://, or without a bucket.
      ImportError: the optional packages are missing.
    """
    scheme, _, rest = address.partition("://")
    if scheme not in SCHEMES or not rest.strip("/"):
        known = " and ".join(f"{each}://BUCKET/..." for each in SCHEMES)
        raise ValueError(f"{address} is no address that can be read or written; known are {known}.")
    found = StorePath(address)
    system(found)
    return found


def system(path: StorePath) -> fsspec.AbstractFileSystem:
    """The client of a path's store.

    Raises:
      ImportError: it is not installed.
    """
    try:
        return _system(path._uri_scheme)
    except ImportError as error:
        raise ImportError(
            f"{path} needs the client of its store: pip install -e '.[stores]' ({error})."
        ) from error


@functools.cache
def _system(scheme: str) -> fsspec.AbstractFileSystem:
    protocol = {"gs": "gcs", "s3": "s3"}[scheme]
    # Orbax's, too: with listings kept in memory a process would not see what another one puts.
    for name in (protocol, scheme):
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    for name in ("gcsfs", "s3fs"):  # they log whole tracebacks of errors that are said here
        logging.logging.getLogger(name).setLevel("CRITICAL")
    if (host := os.environ.get("STORAGE_EMULATOR_HOST")) and scheme == "gs":
        # The emulator of gcsfs, for the array writer of checkpoints.
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", host)
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "emulator")
    return epath.backend.fsspec_backend.fs(f"{scheme}://")


def create(path: StorePath, content: bytes) -> None:
    """Puts an object that is not there yet: of several processes, one succeeds.

    Raises:
      FileExistsError: it is there.
    """
    tries = 0

    def put() -> None:
        nonlocal tries
        tries += 1
        try:
            system(path).pipe_file(str(path), content, mode="create")
        except FileExistsError:
            # The answer to an earlier try of this process may have been lost.
            if tries == 1 or not content or path.read_bytes() != content:
                raise

    attempt(path, put)
