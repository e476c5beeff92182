"""Tokenised text on disk: a folder with a tokenizer and array_record files of documents.

    corpus.json                               format, sizes, digests, settings (written last)
    tokenizer.json or vocab.txt (...)         the tokenizer, as model folders hold it
    train-00003-of-00016.array_record         one record per document
    train-00003-of-00016.lengths.npy          (documents,) tokens of each
    train-00003-of-00016.sentences.npy        (sentences,) their starts, from 0 in each document

A record is a document without special tokens, in little-endian integers: the number of sentences
(uint32), the token at which each starts (uint32), the tokens (uint16 or uint32, as corpus.json
says). `tools/prepare_corpus.py` writes such folders.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import tokenize
import warnings
from collections.abc import Iterable, Mapping

import numpy as np
from array_record.python import array_record_data_source

from mpojax import checks, files
from mpojax.data import pipeline
from mpojax.data.tokenizers import vocabulary as vocabulary_lib
from mpojax.data.tokenizers.tokenizer import Tokenizer

FORMAT = 1
DESCRIPTION = "corpus.json"
_AGAIN = "copy the folder again, or prepare it again"
# What numpy raises for bytes that are no array.
_DAMAGED = (
    *(ValueError, TypeError, EOFError, SyntaxError, OverflowError, MemoryError, RecursionError),
    tokenize.TokenError,
)
_COUNT = checks.integer(0, 2**62)
_FIELDS = {
    "vocab_size": checks.integer(1, 2**31 - 1),
    "special_tokens": checks.mapping(checks.anything()),
    "settings": checks.mapping(checks.anything()),
    "splits": checks.mapping(checks.mapping(checks.anything())),
}
_SPLIT = {"shards": checks.sequence(checks.mapping(checks.anything()))}
_FILE = checks.Allowed(
    "the name of an array_record file in the folder",
    lambda value: (
        isinstance(value, str)
        and len(value) < 256
        and pathlib.PurePath(value).name == value
        and value.endswith(".array_record")
    ),
)
_SHARD = {"file": _FILE, **dict.fromkeys(("documents", "tokens", "sentences", "bytes"), _COUNT)}
_SHA256 = checks.Allowed(
    "64 hexadecimal digits",
    lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One array_record file: its name, what is in it, and its digest; older corpora have none."""

    file: str
    documents: int
    tokens: int
    sentences: int
    bytes: int
    sha256: str = ""

    def array_file(self, what: str) -> str:
        """Name of the file of "lengths" or "sentences"."""
        return self.file.removesuffix(".array_record") + f".{what}.npy"


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents one after another.

    Attributes:
      tokens: (T,) int32.
      starts: (N + 1,) int64, the position in `tokens` where each document starts; the last is T.
      sentences: (M,) int64, ascending positions in `tokens` where sentences start.
    """

    tokens: np.ndarray
    starts: np.ndarray
    sentences: np.ndarray


def encode_record(tokens: np.ndarray, sentences: np.ndarray, vocab_size: int) -> bytes:
    """The record of a document; see the top of this file."""
    head = np.array([len(sentences), *sentences], "<u4").tobytes()
    return head + tokens.astype(token_dtype(vocab_size)).tobytes()


def decode_record(record: bytes, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, sentence starts) of a record."""
    count = int(np.frombuffer(record, "<u4", 1)[0])
    sentences = np.frombuffer(record, "<u4", count, offset=4)
    # The head is 1 + count numbers of 4 bytes.
    return np.frombuffer(record, token_dtype(vocab_size), offset=4 * (count + 1)), sentences


def token_dtype(vocab_size: int) -> str:
    return "<u2" if vocab_size <= 2**16 else "<u4"


class Corpus:
    """A corpus folder, opened and checked; documents are read when they are asked for.

    Attributes:
      folder: absolute path; of a corpus on a store, that of its copy on this machine.
      vocab_size: largest token id + 1.
      special: ids of the special tokens, `SpecialTokens`.
      splits: {name: shards}, e.g. "train" and "valid".
      settings: how it was made.

    Raises:
      FileNotFoundError: no such folder, or it holds no finished corpus.
      ValueError: files are missing, cut off, or of another format.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = files.local(folder).absolute()
        description = _read_description(self.folder)
        self.vocab_size = description["vocab_size"]
        self.special = vocabulary_lib.SpecialTokens(**description["special_tokens"])
        self.settings = description["settings"]
        self.splits = {
            name: tuple(Shard(**shard) for shard in split["shards"])
            for name, split in description["splits"].items()
        }
        self._check_files()

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.folder)

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        """(V,) bool: whether a token starts a word."""
        return vocabulary_lib.word_starts(self.tokenizer().vocabulary())

    def count(self, split: str, what: str = "tokens") -> int:
        """Documents, tokens or sentences of a split."""
        return sum(getattr(shard, what) for shard in self.shards(split))

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Raises ValueError for a split that is not there."""
        if split not in self.splits:
            raise ValueError(f"{self.folder} has no split {split!r}; it has {list(self.splits)}")
        return self.splits[split]

    def fingerprint(self, split: str) -> str:
        """Digest of the split's entry in corpus.json, and of the lengths of its documents.

        The entry holds digests of the text; without these, as in older corpora, another text of the
        same lengths is not told apart.
        """
        shards = map(dataclasses.asdict, self.shards(split))
        # Without empty digests: corpora of before there were any keep their fingerprints.
        known = [{name: v for name, v in shard.items() if v != ""} for shard in shards]
        entry = [self.vocab_size, *known]
        lengths = self.lengths(split)
        return pipeline.fingerprint({"entry": np.array(json.dumps(entry)), "lengths": lengths})

    def lengths(self, split: str) -> np.ndarray:
        """(N,) int32: tokens of every document."""
        return self._array(split, "lengths")

    def sentences(self, split: str) -> np.ndarray:
        """(M,) int32: where sentences start, one document after another, from 0 in each."""
        return self._array(split, "sentences")

    def _array(self, split: str, what: str) -> np.ndarray:
        counts = {"lengths": "documents", "sentences": "sentences"}
        parts = [
            _read_array(self.folder / shard.array_file(what), getattr(shard, counts[what]))
            for shard in self.shards(split)
        ]
        return np.concatenate(parts)

    def check_vocab_size(self, vocab_size: int) -> None:
        """Raises ValueError for a model whose vocabulary has another size than that of the text."""
        if vocab_size != self.vocab_size:
            raise ValueError(
                f"the model has vocab_size={vocab_size}, the corpus {self.folder} is tokenised "
                f"with {self.vocab_size} tokens; set the model's vocab_size to that, or prepare "
                "the corpus with the model's own tokenizer (tools/prepare_corpus.py --tokenizer)"
            )

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError for a tokenizer with other tokens or numbers than that of the text."""
        own, other = self.tokenizer().vocabulary(), tokenizer.vocabulary()
        if own == other:
            return
        differing = sorted(t for t in own.keys() | other.keys() if own.get(t) != other.get(t))
        raise ValueError(
            f"the corpus {self.folder} is tokenised with another vocabulary: {len(differing)} "
            f"tokens differ, e.g. {differing[0]!r} (corpus: {own.get(differing[0])}, model: "
            f"{other.get(differing[0])}); prepare it with the model's own tokenizer "
            "(tools/prepare_corpus.py --tokenizer)"
        )

    def reader(self, split: str, memory: int = 2**30) -> "Reader":
        """Documents of a split; held in memory where they need at most `memory` bytes."""
        shards = self.shards(split)
        paths = [str(self.folder / shard.file) for shard in shards]
        # As in `Documents`: int32 tokens, int64 sentence starts.
        size = 4 * self.count(split) + 8 * self.count(split, "sentences")
        return Reader(paths, self.vocab_size, in_memory=size <= memory)

    def _check_files(self) -> None:
        for split, shards in self.splits.items():
            for shard in shards:
                path = self.folder / shard.file
                size = path.stat().st_size if path.is_file() else None
                arrays = [self.folder / shard.array_file(n) for n in ("lengths", "sentences")]
                if size == shard.bytes and all(array.is_file() for array in arrays):
                    continue
                found = "or an array next to it is missing"
                if size is not None and size != shard.bytes:
                    found = f"is {size} bytes long, expected {shard.bytes}"
                raise ValueError(
                    f"{path} {found}; the split {split} is damaged: copy the folder again, or "
                    "prepare it again"
                )


class Reader:
    """Random access to the documents of a split."""

    def __init__(self, paths: list[str], vocab_size: int, *, in_memory: bool):
        self._vocab_size = vocab_size
        self._source = array_record_data_source.ArrayRecordDataSource(paths)
        self._all = self._read(range(len(self._source))) if in_memory else None

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, documents: np.ndarray) -> tuple[Documents, np.ndarray]:
        """Documents that hold those asked for, and (len(documents),) their indices among them."""
        if self._all is not None:
            return self._all, documents
        # Several pieces of a batch may be of one document, which is read once.
        wanted, indices = np.unique(documents, return_inverse=True)
        return self._read(wanted.tolist()), indices

    def _read(self, numbers: Iterable[int]) -> Documents:
        records = self._source.__getitems__(list(numbers)) if len(numbers) else []
        decoded = [decode_record(record, self._vocab_size) for record in records]
        starts = np.cumsum([0] + [len(tokens) for tokens, _ in decoded], dtype=np.int64)
        sentences = [
            start + own.astype(np.int64) for start, (_, own) in zip(starts, decoded, strict=False)
        ]
        return Documents(
            np.concatenate([tokens for tokens, _ in decoded]).astype(np.int32),
            starts,
            np.concatenate(sentences),
        )


def _read_description(folder: pathlib.Path) -> dict:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(
            f"no corpus in {folder}: it lacks {DESCRIPTION}, which is written last; start or "
            "finish it with tools/prepare_corpus.py"
        )
    description = checks.read_json(path)
    if description.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {checks.shortened(description.get('format'))}; this version reads "
            f"{FORMAT}: prepare the corpus again"
        )
    checks.check(description, _FIELDS, str(path), _FIELDS)
    special = dict.fromkeys(vocabulary_lib.SpecialTokens._fields, checks.integer(0))
    _check_exactly(description["special_tokens"], special, f"{path}: special_tokens")
    for name, split in description["splits"].items():
        where = f"{path}: split {checks.shortened(name)}"
        checks.check(split, _SPLIT, where, _SPLIT)
        for shard in split["shards"]:
            _check_exactly(shard, _SHARD, where, {"sha256": _SHA256})
    return description


def _check_exactly(
    values: dict,
    fields: Mapping[str, checks.Allowed],
    where: str,
    optional: Mapping[str, checks.Allowed] | None = None,
) -> None:
    """Checks that there are all of the fields, maybe `optional` ones, and nothing else."""
    known = {**fields, **(optional or {})}
    checks.check(values, known, where, fields)
    checks.check_names(values, known, where)


def _read_array(path: pathlib.Path, count: int) -> np.ndarray:
    """An array of a shard.

    Raises:
      ValueError: it is not what was written: `count` integers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd headers, which are refused or read
            # Mapped, not read: a header may promise more than the file holds. Never unpickled.
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _DAMAGED as error:
        raise ValueError(f"{path} is damaged: {checks.cut(str(error))}; {_AGAIN}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.shape != (count,):
        found = getattr(array, "shape", None), getattr(array, "dtype", None)
        raise ValueError(f"{path} is damaged: {found} in place of {count} integers; {_AGAIN}")
    return np.array(array)
