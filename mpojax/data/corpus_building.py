"""From a text folder to a corpus folder: parallel, resumable, the same bytes whatever the workers.

The work is cut into shards by the text and the settings alone. A shard is done when its marker file
is there, which is written last; a run that is killed loses at most the shards it was working on.
`plan.json` holds the settings, so that nothing is mixed with the rest of another run.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from array_record.python import array_record_module

from mpojax import files
from mpojax.data import corpus as corpus_lib
from mpojax.data import text_documents, vocabulary
from mpojax.data import workers as workers_lib
from mpojax.data.tokenizer import Tokenizer

SPLITS = ("train", "valid")
_PLAN = "plan.json"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
# A vocabulary is trained on a sample of about so much text.
_VOCABULARY_BYTES = 2**30
# (what, done, total): kilobytes of text.
Advance = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides about the content of a corpus.

    Attributes:
      vocab_size: of a vocabulary that is trained on the text; None: `tokenizer` is used.
      tokenizer: folder of a model's tokenizer.
      valid: share of the documents that is held out as the split "valid", chosen by the SHA-256 of
        their text. Above 0, at least one document is held out.
      documents: how .txt files are cut into documents, "file", "paragraph" or "line".
      max_tokens: longer documents become several, cut where a sentence starts.
      shards: None: by the size of the text.
    """

    vocab_size: int | None = None
    tokenizer: str | os.PathLike | None = None
    valid: float = 0.02
    documents: str = "file"
    max_tokens: int = 8192
    shards: int | None = None

    def __post_init__(self):
        if (self.vocab_size is None) == (self.tokenizer is None):
            raise ValueError(
                f"pass one of vocab_size={self.vocab_size} (a vocabulary is trained on the text) "
                f"and tokenizer={self.tokenizer} (a folder)"
            )
        if not 0 <= self.valid < 1:
            raise ValueError(f"valid={self.valid} must be from 0 to below 1")
        if self.documents not in text_documents.DOCUMENTS:
            raise ValueError(
                f"documents={self.documents!r}; allowed are {list(text_documents.DOCUMENTS)}"
            )
        if self.max_tokens < 16:
            raise ValueError(f"max_tokens={self.max_tokens} must be at least 16")
        if self.shards is not None and self.shards < 1:
            raise ValueError(f"shards={self.shards} must be at least 1")


class _Scan(NamedTuple):
    """What a first look at a piece of text found."""

    sha256: str
    documents: int
    held_out: int
    lowest: int  # hash of a document, 2**64 if there is none
    highest: int  # -1 if there is none


def build(
    text: str | os.PathLike,
    out: str | os.PathLike,
    settings: Settings,
    *,
    workers: int = 1,
    advance: Advance = lambda what, done, total: None,
) -> corpus_lib.Corpus:
    """Makes, finishes or just opens the corpus folder `out`.

    Args:
      text: folder of .txt and .jsonl files, at any depth.
      out: made where it does not exist.
      workers: processes; changes nothing but the time.
      advance: told about progress.

    Raises:
      FileNotFoundError: no such folder, or no text in it.
      ValueError: text that is not UTF-8, a vocabulary without the special tokens, `out` holds
        something else or a corpus of other settings.
      OSError: `out` cannot be written.
    """
    out = pathlib.Path(out).expanduser().absolute()
    tokenizer_from = _find_tokenizer(settings)
    paths = text_documents.find_files(pathlib.Path(text).expanduser())
    _check_folder(out)
    pieces = text_documents.cut_files(paths, settings.documents)
    if not pieces:
        raise FileNotFoundError(f"no text in {text}: its {len(paths)} files are empty")
    with workers_lib.Workers(workers) as pool:
        threshold, source = _scan(pool, pieces, paths, pathlib.Path(text), settings, advance)
        count = settings.shards or _shard_count(pieces)
        plan = _plan(settings, tokenizer_from, source, count)
        try:
            if not _begin(out, plan):
                _put_tokenizer(out, settings, tokenizer_from, pieces, threshold, advance)
                groups = text_documents.group_pieces(pieces, count)
                shards = _write_shards(pool, out, settings, groups, threshold, advance)
                _finish(out, plan, shards)
            _tidy(out)
        except OSError as error:
            raise files.explain(error, error.filename or out) from error
    return corpus_lib.Corpus(out)


def _scan(pool, pieces, paths, root, settings, advance) -> tuple[int, dict]:
    """Reads all text once: (hash below which documents are held out, what the text is)."""
    threshold = int(settings.valid * 2**64)
    jobs = [(piece, settings.documents, threshold) for piece in pieces]
    scans = list(pool.map(_scan_piece, jobs, _total(pieces), _told(advance, "reading")))
    documents = sum(scan.documents for scan in scans)
    lowest, highest = min(s.lowest for s in scans), max(s.highest for s in scans)
    if not documents:
        raise FileNotFoundError(f"no text in {root}: its {len(paths)} files hold only white space")
    if settings.valid > 0 and lowest == highest:
        raise ValueError(
            f"nothing can be held out of {documents} document(s) with the same text; pass valid=0, "
            "or cut the files into documents with documents='paragraph' or 'line'"
        )
    held_out = sum(scan.held_out for scan in scans)
    if settings.valid > 0 and held_out == 0:
        threshold = lowest + 1
    elif held_out == documents:
        threshold = highest
    digest = hashlib.sha256()
    for piece, scan in zip(pieces, scans, strict=True):
        digest.update(f"{piece.path.relative_to(root).as_posix()}\n{scan.sha256}\n".encode())
    source = {"files": len(paths), "bytes": _total(pieces), "sha256": digest.hexdigest()}
    return threshold, source


def _scan_piece(piece: text_documents.Piece, documents: str, threshold: int) -> _Scan:
    content = text_documents.read_piece(piece)
    hashes = [document_hash(t) for t in text_documents.documents_of(piece, content, documents)]
    workers_lib.add(len(content))
    return _Scan(
        hashlib.sha256(content).hexdigest(),
        len(hashes),
        sum(h < threshold for h in hashes),
        min(hashes, default=2**64),
        max(hashes, default=-1),
    )


def document_hash(text: str) -> int:
    """64 bits of the SHA-256 of a document's text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def _shard_count(pieces: list[text_documents.Piece]) -> int:
    # Enough for some parallel work on little text, files of a convenient size for much.
    total = _total(pieces)
    return max(-(-total // 2**27), min(16, -(-total // 2**22)))


def _told(advance: Advance, what: str) -> workers_lib.Advance:
    return lambda done, total: advance(what, done // 1000, total // 1000)


def _total(pieces: list[text_documents.Piece]) -> int:
    return sum(piece.end - piece.start for piece in pieces)


# Settings and folder.


def _find_tokenizer(settings: Settings) -> pathlib.Path | None:
    """The tokenizer's folder, which has been found usable, or None."""
    if settings.tokenizer is None:
        return None
    folder = pathlib.Path(settings.tokenizer).expanduser()
    vocabulary.SpecialTokens.of(Tokenizer.from_folder(folder).vocabulary(), str(folder))
    return folder


def _tokenizer_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]


def _plan(settings: Settings, tokenizer: pathlib.Path | None, source: dict, shards: int) -> dict:
    digest = hashlib.sha256()
    for path in _tokenizer_files(tokenizer) if tokenizer else []:
        digest.update(path.read_bytes())
    return {
        "format": corpus_lib.FORMAT,
        "text": source,
        "vocab_size": settings.vocab_size,
        "tokenizer": digest.hexdigest() if tokenizer else None,
        "valid": settings.valid,
        "documents": settings.documents,
        "max_tokens": settings.max_tokens,
        "shards": shards,
    }


def _check_folder(out: pathlib.Path) -> None:
    """Raises ValueError where the folder holds anything but a corpus or a part of one."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; pass another folder")
    known = any((out / name).is_file() for name in (_PLAN, corpus_lib.DESCRIPTION))
    others = [p.name for p in out.iterdir() if not files.is_leftover(p)] if out.is_dir() else []
    if others and not known:
        raise ValueError(
            f"{out} holds something else ({', '.join(sorted(others)[:3])}); pass an empty or new "
            "folder"
        )


def _begin(out: pathlib.Path, plan: dict) -> bool:
    """Whether the corpus is complete; else the folder is ready for the work that is left.

    Raises:
      ValueError: it was begun with other settings; says which.
    """
    finished = (out / corpus_lib.DESCRIPTION).is_file()
    path = out / (corpus_lib.DESCRIPTION if finished else _PLAN)
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        there = there["settings"] if finished else there
        differing = [
            f"{name}: {there.get(name)!r} there, {value!r} now"
            for name, value in plan.items()
            if there.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"{out} holds a corpus of other settings ({'; '.join(differing)}); pass these, or "
                "another folder"
            )
    else:
        files.write_atomic(path, json.dumps(plan, indent=2) + "\n")
    files.remove_leftovers(out)
    return finished


def _put_tokenizer(out, settings, tokenizer, pieces, threshold, advance) -> None:
    """Copies the tokenizer, or trains one, where the folder has none yet."""
    # The last file says that the others are there: tokenizer.json, or vocab.txt without one.
    if tokenizer:
        for path in reversed(_tokenizer_files(tokenizer)):
            files.write_atomic(out / path.name, path.read_bytes())
    elif not (out / "tokenizer.json").is_file():
        texts = _VocabularyTexts(pieces, settings.documents, threshold, advance)
        trained = vocabulary.train(texts, settings.vocab_size)
        files.write_atomic(out / "tokenizer.json", trained.to_str(pretty=True) + "\n")


class _VocabularyTexts:
    """The documents that a vocabulary is trained on: not held out, and of the rest a sample."""

    def __init__(self, pieces, documents: str, threshold: int, advance: Advance):
        self._pieces, self._documents, self._advance = pieces, documents, advance
        share = min(1.0, _VOCABULARY_BYTES / _total(pieces))
        self._threshold = threshold
        self._below = threshold + int(share * (2**64 - threshold))
        self._done = 0  # of two passes

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            content = text_documents.read_piece(piece)
            for text in text_documents.documents_of(piece, content, self._documents):
                if self._threshold <= document_hash(text) < self._below:
                    yield text
            self._done += len(content)
            total = 2 * _total(self._pieces)
            self._advance("vocabulary", self._done // 1000, total // 1000)


# Shards.


def _write_shards(pool, out, settings, groups, threshold, advance) -> list[dict]:
    """{split: shard} of all shards, in order; those that are there are kept."""
    names = [f"{number:05d}-of-{len(groups):05d}" for number in range(len(groups))]
    jobs = [
        (out, name, group, settings.documents, settings.max_tokens, threshold)
        for name, group in zip(names, groups, strict=True)
        if not _marker(out, name).is_file()
    ]
    total = sum(_total(job[2]) for job in jobs)
    for _ in pool.map(_write_shard, jobs, total, _told(advance, "tokenising")):
        pass
    return [json.loads(_marker(out, name).read_text(encoding="utf-8")) for name in names]


def _marker(out: pathlib.Path, name: str) -> pathlib.Path:
    return out / f"shard-{name}.json"


def _write_shard(
    out: pathlib.Path,
    name: str,
    pieces: list[text_documents.Piece],
    documents: str,
    max_tokens: int,
    threshold: int,
) -> None:
    """Writes the files of one shard, its marker last. Its records are held in memory."""
    encoder = _Encoder.of(out)
    records = {split: [] for split in SPLITS}
    lengths = {split: [] for split in SPLITS}
    sentences = {split: [] for split in SPLITS}
    for piece in pieces:
        content, done = text_documents.read_piece(piece), 0
        for text in text_documents.documents_of(piece, content, documents):
            split = SPLITS[document_hash(text) < threshold]
            for tokens, starts in encoder.encode(text, max_tokens):
                records[split].append(corpus_lib.encode_record(tokens, starts, encoder.vocab_size))
                lengths[split].append(len(tokens))
                sentences[split] += starts
            workers_lib.add(len(text))
            done += len(text)
        workers_lib.add(len(content) - done)  # characters of more than one byte, white space
    marker = {}
    for split in SPLITS:
        if not records[split]:
            continue
        file = f"{split}-{name}.array_record"
        fill = functools.partial(_write_records, records[split])
        files.write_atomic(out / file, fill)
        size = (out / file).stat().st_size
        counts = (len(records[split]), sum(lengths[split]), len(sentences[split]))
        shard = corpus_lib.Shard(file, *counts, size)
        for what, values in (("lengths", lengths), ("sentences", sentences)):
            fill = functools.partial(np.save, arr=np.array(values[split], np.int32))
            files.write_atomic(out / shard.array_file(what), fill)
        marker[split] = dataclasses.asdict(shard)
    files.write_atomic(_marker(out, name), json.dumps(marker))


def _write_records(records: list[bytes], path: pathlib.Path) -> None:
    # Groups of one record: any document can be read without its neighbours.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    reader = array_record_module.ArrayRecordReader(str(path))
    if reader.num_records() != len(records):
        raise OSError(f"{path} holds {reader.num_records()} records of {len(records)}")
    reader.close()


class _Encoder:
    """Texts to the documents of records."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        tokens = tokenizer.vocabulary()
        self.vocab_size = max(tokens.values()) + 1
        # Byte-level vocabularies mark a word's start by its blank, which a sentence begins without.
        self._before = " " if vocabulary.word_mark(tokens) == "Ġ" else ""

    @classmethod
    @functools.lru_cache(maxsize=1)
    def of(cls, folder: pathlib.Path) -> "_Encoder":
        return cls(Tokenizer.from_folder(folder))

    def encode(self, text: str, max_tokens: int) -> Iterator[tuple[list[int], list[int]]]:
        """(tokens, sentence starts), each of 1 to `max_tokens` tokens."""
        sentences = [self._before + s for s in text_documents.split_sentences(text)]
        tokens, starts = [], []
        for sentence in self._tokenizer.encode_plain(sentences):
            if tokens and len(tokens) + len(sentence) > max_tokens:
                yield tokens, starts
                tokens, starts = [], []
            while len(sentence) > max_tokens:  # the document is empty here
                yield sentence[:max_tokens], [0]
                sentence = sentence[max_tokens:]
            if sentence:
                starts.append(len(tokens))
                tokens += sentence
        if tokens:
            yield tokens, starts


def _finish(out: pathlib.Path, plan: dict, shards: list[dict]) -> None:
    tokens = Tokenizer.from_folder(out).vocabulary()
    splits = {}
    for split in SPLITS:
        own = [shard[split] for shard in shards if split in shard]
        if own:
            totals = {k: sum(s[k] for s in own) for k in ("documents", "tokens", "sentences")}
            splits[split] = totals | {"shards": own}
    description = {
        "format": corpus_lib.FORMAT,
        "vocab_size": max(tokens.values()) + 1,
        "special_tokens": vocabulary.SpecialTokens.of(tokens, str(out))._asdict(),
        "splits": splits,
        "settings": plan,
    }
    files.write_atomic(out / corpus_lib.DESCRIPTION, json.dumps(description, indent=2) + "\n")


def _tidy(out: pathlib.Path) -> None:
    """Removes what only an unfinished corpus needs."""
    for path in (out / _PLAN, *out.glob("shard-*.json")):
        path.unlink(missing_ok=True)
