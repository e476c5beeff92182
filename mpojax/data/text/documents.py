"""Plain text folders: documents, sentences, and pieces of equal work.

A folder is searched at any depth for `.txt` files (UTF-8) and `.jsonl` files (one JSON object per
line, its text in the field "text"). Everything goes in the order of the relative paths, so that it
never depends on the file system.
"""

import bisect
import itertools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from mpojax import checks, files

# How a .txt file is cut into documents; a record of a .jsonl file is always one document.
DOCUMENTS = ("file", "paragraph", "line")
SUFFIXES = (".txt", ".jsonl")
# A document is held in memory as a whole.
_LARGEST_DOCUMENT = 2**30

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
# An end of a sentence: . ! ? with closing quotes and brackets, then white space.
_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|Rev|Gen|Col|Capt|Lt|Sgt|Sen|Rep|Gov|St|Mt|Jr|Sr"
    r"|Messrs|Mme|Mlle|vs|etc|cf|e\.g|i\.e|viz|ca|No|Nos|Vol|pp|Fig|Figs|Co|Corp|Inc|Ltd"
    r"|Jan|Feb|Mar|Apr|Aug|Sept|Sep|Oct|Nov|Dec|[A-Z]\.[A-Z])\.$"
)


class Piece(NamedTuple):
    """Bytes start to end of a file, which hold whole documents."""

    path: pathlib.Path
    start: int
    end: int


def split_sentences(text: str) -> list[str]:
    """Sentences of a text without the white space around them, in order.

    A sentence ends at a line break, and after . ! ? (with closing quotes and brackets) before white
    space, unless a lower-case letter follows or the point belongs to an initial or a common English
    abbreviation. Good enough for choosing places to cut; no word is lost or changed.

    >>> split_sentences("Dr. No came. He left!")
    ['Dr. No came.', 'He left!']
    """
    sentences = []
    for line in text.splitlines():
        start = 0
        for match in _END.finditer(line):
            following = line[match.end() : match.end() + 1]
            # 12 characters hold the longest abbreviation and what stands before it.
            point = line[max(start, match.start() - 12) : match.start() + 1]
            if following.islower() or _ABBREVIATION.search(point):
                continue
            sentences.append(line[start : match.end()].strip())
            start = match.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def find_files(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The text files of a folder in the order of their relative paths; hidden ones are left out.

    Raises:
      FileNotFoundError: no such folder, or no text file in it.
    """
    folder = files.local(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; pass the folder that holds the text files")
    found = [
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES and path.is_file()
    ]
    found = sorted((name, path) for name, path in found if not re.search(r"(^|/)\.", name))
    if not found:
        raise FileNotFoundError(
            f"no text in {folder}: it holds no {' or '.join(SUFFIXES)} file, at any depth"
        )
    return [path for _, path in found]


def cut_files(paths: list[pathlib.Path], documents: str, size: int = 2**26) -> list[Piece]:
    """Cuts files into pieces of about `size` bytes that hold whole documents.

    Raises:
      ValueError: an unknown way to cut, a file that Git LFS has not fetched, or one that is too
        large to be one document.
    """
    checks.check_value("documents", documents, checks.one_of(*DOCUMENTS))
    pieces = []
    for path in paths:
        files.check_fetched(path)
        length = path.stat().st_size
        if documents == "file" and path.suffix == ".txt":
            if length > _LARGEST_DOCUMENT:
                raise ValueError(
                    f"{path} has {length} bytes, too many for one document; cut it into "
                    "documents with documents='paragraph' or 'line'"
                )
            bounds = [0, length]
        else:
            whole_lines = documents == "line" or path.suffix == ".jsonl"
            bounds = _bounds(path, length, size, b"\n" if whole_lines else b"\n\n")
        pieces += [Piece(path, a, b) for a, b in itertools.pairwise(bounds) if b > a]
    return pieces


def group_pieces(pieces: list[Piece], count: int) -> list[list[Piece]]:
    """Cuts the list into `count` runs of about equal bytes; some are empty if pieces are few."""
    ends = list(itertools.accumulate(piece.end - piece.start for piece in pieces))
    total = ends[-1]
    # A piece goes to the group in which its middle lies.
    middles = [end - (piece.end - piece.start) / 2 for piece, end in zip(pieces, ends, strict=True)]
    cuts = [bisect.bisect_left(middles, total * k / count) for k in range(count + 1)]
    return [pieces[a:b] for a, b in itertools.pairwise(cuts)]


def read_piece(piece: Piece) -> bytes:
    with open(piece.path, "rb") as file:
        file.seek(piece.start)
        return file.read(piece.end - piece.start)


def documents_of(piece: Piece, content: bytes, documents: str) -> Iterator[str]:
    """The documents of a piece that hold anything but white space.

    Raises:
      ValueError: bytes that are not UTF-8, or lines that are not JSON with a "text"; names the file
        and the byte.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{piece.path} is not UTF-8: byte {piece.start + error.start} is "
            f"0x{content[error.start]:02x}; convert the file (e.g. iconv -t UTF-8) or remove it"
        ) from error
    if piece.start == 0:
        text = text.removeprefix("\ufeff")
    if piece.path.suffix == ".jsonl":
        parts = _json_texts(piece, text)
    elif documents == "file":
        parts = iter([text])
    elif documents == "line":
        parts = iter(text.split("\n"))
    else:
        parts = iter(_PARAGRAPH.split(text))
    return (part for part in parts if part.strip())


def _json_texts(piece: Piece, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{piece.path}, line {number}" + (f" after byte {piece.start}" * bool(piece.start))
        record = checks.parse_json(line, f"{place} is")
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise ValueError(f'{place} has no text: expected an object like {{"text": "..."}}')
        try:
            record["text"].encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"{place} has half of a surrogate pair in its text") from error
        yield record["text"]


def _bounds(path: pathlib.Path, length: int, size: int, separator: bytes) -> list[int]:
    """0, then places just after a separator about every `size` bytes, then the length."""
    bounds = [0]
    with open(path, "rb") as file:
        while length - bounds[-1] > size:
            start = bounds[-1] + size
            window = b""
            file.seek(start)
            # The window grows from its start, so that a separator across two reads is found.
            while separator not in window and (more := file.read(2**16)):
                window += more
            if separator not in window:
                break
            bounds.append(start + window.index(separator) + len(separator))
    return [*bounds, length]
