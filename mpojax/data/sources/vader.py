"""VADER movie snippets: 10,605 sentences of film reviews, each with the mean of 20 human ratings.

The text is the film part of Hutto and Gilbert (2014), "VADER: A Parsimonious Rule-based Model for
Sentiment Analysis of Social Media Text", as shipped in the source package of vaderSentiment 3.3.2
(MIT licence). Its sentences overlap SST and Rotten Tomatoes: never train on one and test
on another.
"""

import hashlib
import io
import os
import tarfile

import numpy as np
from absl import logging

from mpojax.data.sources import packages
from mpojax.data.text import classification

ARCHIVE = packages.PackageFile(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def load() -> classification.TextTask:
    """The task `vader_movie`: 8,463 / 1,069 / 1,036 sentences, label 1 = mean rating above zero.

    37 of the 10,605 sentences have a mean rating of exactly zero, thus no sign: they are left out.
    The split goes by the text (`split_of`), so that it never depends on order and equal sentences
    stay together.
    """
    rows = parse(packages.cached(ARCHIVE))
    signed = [(text, rating) for text, rating in rows if rating != 0.0]
    logging.info(
        "vader_movie: %d sentences, %d without a sign left out", len(rows), len(rows) - len(signed)
    )
    splits = {}
    for name in ("train", "dev", "test"):
        chosen = [(text, rating > 0) for text, rating in signed if split_of(text) == name]
        labels = np.array([positive for _, positive in chosen], np.int32)
        splits[name] = classification.Split([text for text, _ in chosen], labels)
    return classification.TextTask("vader_movie", splits, ("negative", "positive"))


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
