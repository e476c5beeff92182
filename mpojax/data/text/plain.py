"""Plain text by name, in splits: documents for language models.

Whole documents are held out for development and test: those of the lowest hashes of their text, so
that neither names nor order of the files decide, and equal documents stay together.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping

from absl import logging

from mpojax import files
from mpojax.data.corpus import shards
from mpojax.data.sources import file_tasks
from mpojax.data.text import documents as text_documents

SPLITS = ("train", "dev", "test")
# WikiText-2 under the names of its own download and as plain .txt.
_WIKITEXT_FOLDERS = ("wikitext-2", "wikitext2")
_WIKITEXT_FILES = ("{}.txt", "{}.tokens", "wiki.{}.tokens")


@dataclasses.dataclass(frozen=True)
class Texts:
    """Documents of some splits.

    Attributes:
      name: what it was loaded by.
      splits: {split: documents, each as it is in its file}.
      lacking: {split: why it is not there}, for the error of whoever asks for it.
    """

    name: str
    splits: Mapping[str, tuple[str, ...]]
    lacking: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __getitem__(self, split: str) -> tuple[str, ...]:
        """The documents of a split.

        Raises:
          ValueError: it is not there; says why and what is.
        """
        if split not in self.splits:
            why = self.lacking.get(split, "no such split")
            raise ValueError(
                f"texts {self.name!r} have no split {split!r}: {why}; has {sorted(self.splits)}"
            )
        return self.splits[split]


def load_texts(
    name: str, data_dir: str | os.PathLike | None = None, *, held_out: float = 0.05
) -> Texts:
    """Loads plain text in the splits train, dev and test.

    `name` is one of

    - `wikitext2`: `wikitext-2/{train,valid,test}.txt` (or `.tokens`, or `wiki.train.tokens` and so
      on) in `data_dir`, each file one document, as given; valid is the split dev. Files may be
      missing: only asking for their split is an error;
    - `python_docs`: the language reference that every Python carries, half a megabyte; every fifth
      topic is held out for test, the one after for dev;
    - `file:train=a.txt,dev=b.txt,test=c.txt`: one or more files, each .txt file one document, each
      line of a .jsonl file one, its text in the field "text";
    - a folder of .txt and .jsonl files, such as `tools/texts/fetch.py` writes. Documents are held
      out as whole ones, by the SHA-256 of their text; of less than about ten, none are;
    - several of these, joined by `+`. All must have a train split; dev and test hold the documents
      of those that have one.

    Args:
      data_dir: where relative names are looked for; default: the current folder, then
        `$MPOJAX_DATA`, else `data`.
      held_out: fraction of a folder's documents in each of dev and test.

    Raises:
      FileNotFoundError: a folder or file is missing; names what was looked for.
      ValueError: text that is not UTF-8, empty text, a share outside 0..0.5, a line that does not
        parse.
    """
    if not 0.0 <= held_out < 0.5:
        raise ValueError(f"held_out={held_out} must be from 0 to below 0.5: dev and test get it")
    roots = _roots(data_dir)
    if name == "wikitext2":
        return _wikitext(name, roots)
    if name == "python_docs":
        return _python_docs()
    if name.startswith(file_tasks.PREFIX) and "+" not in name:
        return _files(name, roots)
    folders = [files.join(root, name) for root in roots]
    folder = next((folder for folder in folders if name and folder.is_dir()), None)
    if folder is not None:
        return _folder(name, folder, held_out)
    if "+" in name:
        parts = [load_texts(part.strip(), data_dir, held_out=held_out) for part in name.split("+")]
        return _joined(name, parts)
    raise FileNotFoundError(
        f"no texts {name!r}: no folder {' or '.join(map(str, folders))}; allowed are 'wikitext2', "
        f"'python_docs', '{file_tasks.PREFIX}train=a.txt,dev=b.txt', a folder of .txt and .jsonl "
        "files, and several of these joined by '+'"
    )


def load_documents(
    name: str, split: str = "test", data_dir: str | os.PathLike | None = None
) -> tuple[str, ...]:
    """The documents of one file (.jsonl: each line; else the whole file), or of a split by name.

    Args:
      name: of a file, relative to `data_dir` or as `load_texts` looks; else as in `load_texts`.
      split: of what is no single file.

    Raises:
      FileNotFoundError, ValueError: as `load_texts`.
    """
    paths = [files.join(root, name) for root in _roots(data_dir)]
    found = next((path for path in paths if name and path.is_file()), None)
    return read_files([found]) if found else load_texts(name, data_dir)[split]


def _roots(data_dir: str | os.PathLike | None) -> list[pathlib.Path]:
    if data_dir is not None:
        return [files.at(data_dir)]
    return [pathlib.Path(), files.data_dir()]


def _wikitext(name: str, roots: list[pathlib.Path]) -> Texts:
    paths, lacking = {}, {}
    folders = [root / folder for root in roots for folder in _WIKITEXT_FOLDERS]
    folders += [root for root in roots if root.name in _WIKITEXT_FOLDERS]
    for split, own in zip(SPLITS, ("train", "valid", "test"), strict=True):
        names = [pattern.format(own) for pattern in _WIKITEXT_FILES]
        found = [f / file for f in folders for file in names if (f / file).is_file()]
        if found:
            paths[split] = found[0]
        else:
            lacking[split] = f"no {' or '.join(names)} in {folders[0]}"
    if not paths:
        raise FileNotFoundError(
            f"no WikiText-2: {lacking['test']} (nor in {', '.join(map(str, folders[1:]))}); pass "
            "data_dir (or set MPOJAX_DATA) to the folder that holds wikitext-2"
        )
    return Texts(name, {split: read_files([path]) for split, path in paths.items()}, lacking)


def _python_docs() -> Texts:
    from pydoc_data.topics import topics  # large, and read by nobody else

    documents = [topics[name] for name in sorted(topics)]
    held_out = {"test": documents[::5], "dev": documents[1::5]}
    train = [text for k, text in enumerate(documents) if k % 5 > 1]
    splits = {"train": train, **held_out}
    return Texts("python_docs", {split: tuple(texts) for split, texts in splits.items()})


def _files(name: str, roots: list[pathlib.Path]) -> Texts:
    splits = {}
    for split, path in _named_files(name):
        candidates = [files.join(root, path) for root in roots]
        found = next((file for file in candidates if file.is_file()), None)
        if split not in SPLITS:
            raise ValueError(f"{name!r}: unknown split {split!r}; allowed are {list(SPLITS)}")
        if found is None:
            raise FileNotFoundError(f"no file {' or '.join(map(str, candidates))} ({name!r})")
        splits[split] = read_files([found])
    return Texts(name, splits)


def _named_files(name: str) -> list[tuple[str, str]]:
    parts = name.removeprefix(file_tasks.PREFIX).split(",")
    return list(file_tasks.pairs(parts, name, "'file:train=a.txt,dev=b.txt'").items())


def _folder(name: str, folder: pathlib.Path, held_out: float) -> Texts:
    documents = read_files(text_documents.find_files(folder))
    hashes = [shards.document_hash(text) for text in documents]
    distinct = sorted(set(hashes))
    # By rank, not by value: of a few long documents, chance would hold out far more than asked.
    count = int(held_out * len(distinct) + 0.5)
    dev, test = set(distinct[:count]), set(distinct[count : 2 * count])
    splits = {split: [] for split in SPLITS}
    for text, number in zip(documents, hashes, strict=True):
        splits["dev" if number in dev else "test" if number in test else "train"].append(text)
    why = f"{held_out:.1%} of the {len(documents)} documents of {folder} are less than one"
    return Texts(
        name,
        {split: tuple(texts) for split, texts in splits.items() if texts},
        {split: why for split, texts in splits.items() if not texts},
    )


def _joined(name: str, parts: list[Texts]) -> Texts:
    without = [part.name for part in parts if "train" not in part.splits]
    splits, lacking = {}, {}
    for split in SPLITS:
        if split == "train" and without:  # never silently less than was asked for
            lacking[split] = f"{without} have none, and training needs all"
            continue
        own = [part.splits[split] for part in parts if split in part.splits]
        if own:
            splits[split] = tuple(text for texts in own for text in texts)
        else:
            lacking[split] = "none of the parts has it"
        if 0 < len(own) < len(parts):
            missing = [part.name for part in parts if split not in part.splits]
            logging.info("texts %r: the split %r holds nothing of %s", name, split, missing)
    return Texts(name, splits, lacking)


def read_files(paths: Iterable[str | os.PathLike]) -> tuple[str, ...]:
    """The documents of some files, as given; those of white space alone are left out.

    Each .txt file is one document, each line of a .jsonl file one.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: no text, or a file is not UTF-8.
    """
    paths = [files.at(path) for path in paths]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing or not paths:
        raise FileNotFoundError(f"no file {' and no '.join(missing)}")
    paths = [files.local(path) for path in paths]
    pieces = [text_documents.Piece(path, 0, path.stat().st_size) for path in paths]
    documents = tuple(
        text
        for piece in pieces
        for text in text_documents.documents_of(piece, text_documents.read_piece(piece), "file")
    )
    if not documents:
        others = f" and {len(paths) - 1} other files" if len(paths) > 1 else ""
        raise ValueError(f"no text in {paths[0]}{others}")
    return documents
