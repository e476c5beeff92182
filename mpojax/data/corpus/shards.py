"""Work of the processes that build a corpus: a scan of the text, then one shard after another."""

import dataclasses
import errno
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from array_record.python import array_record_module

from mpojax import files
from mpojax.data.corpus import corpus as corpus_lib
from mpojax.data.corpus import workers
from mpojax.data.text import documents as text_documents
from mpojax.data.tokenizers import vocabulary
from mpojax.data.tokenizers.tokenizer import Tokenizer

SPLITS = ("train", "valid")
Document = tuple[np.ndarray, np.ndarray]  # tokens, sentence starts; int32


def document_hash(text: str) -> int:
    """64 bits of the SHA-256 of a document's text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


class Scan(NamedTuple):
    """Result of a first look at a piece of text."""

    sha256: str
    documents: int
    held_out: int
    lowest: int  # hash of a document, 2**64 if there is none
    highest: int  # -1 if there is none


def scan_pieces(pieces: list[text_documents.Piece], documents: str, threshold: int) -> list[Scan]:
    """Looks at text once; documents whose hash is below `threshold` are held out."""
    return [_scan_piece(piece, documents, threshold) for piece in pieces]


def _scan_piece(piece: text_documents.Piece, documents: str, threshold: int) -> Scan:
    content = text_documents.read_piece(piece)
    texts = text_documents.documents_of(piece, content, documents)
    hashes = [document_hash(text) for text in texts]
    workers.add(len(content))
    return Scan(
        hashlib.sha256(content).hexdigest(),
        len(hashes),
        sum(h < threshold for h in hashes),
        min(hashes, default=2**64),
        max(hashes, default=-1),
    )


def marker_file(out: pathlib.Path, name: str) -> pathlib.Path:
    return out / f"shard-{name}.json"


def write_shard(
    out: pathlib.Path,
    name: str,
    pieces: list[text_documents.Piece],
    documents: str,
    max_tokens: int,
    threshold: int,
) -> None:
    """Writes the files of one shard, its marker last. Its records are held in memory."""
    encoder = _Encoder(Tokenizer.from_folder(out))
    found = {split: [] for split in SPLITS}
    for piece in pieces:
        content, done = text_documents.read_piece(piece), 0
        for text in text_documents.documents_of(piece, content, documents):
            # False is "train", True is "valid".
            split = SPLITS[document_hash(text) < threshold]
            found[split] += encoder.encode(text, max_tokens)
            workers.add(len(text))
            done += len(text)
        workers.add(len(content) - done)  # characters of more than one byte, white space
    shards = {
        split: dataclasses.asdict(write_split(out, f"{split}-{name}", own, encoder.vocab_size))
        for split, own in found.items()
        if own
    }
    files.write_atomic(marker_file(out, name), json.dumps(shards))


def write_split(
    out: pathlib.Path, name: str, documents: list[Document], vocab_size: int
) -> corpus_lib.Shard:
    """Writes the files of documents, (tokens, sentence starts) each."""
    file = f"{name}.array_record"
    records = (corpus_lib.encode_record(*document, vocab_size) for document in documents)
    files.write_atomic(out / file, functools.partial(_write_records, records))
    arrays = {
        "lengths": np.array([len(tokens) for tokens, _ in documents], np.int32),
        "sentences": np.concatenate([starts for _, starts in documents]),
    }
    counts = (len(documents), int(arrays["lengths"].sum()), len(arrays["sentences"]))
    shard = corpus_lib.Shard(file, *counts, (out / file).stat().st_size, files.sha256(out / file))
    for what, array in arrays.items():
        files.write_atomic(out / shard.array_file(what), functools.partial(np.save, arr=array))
    return shard


def _write_records(records: Iterable[bytes], path: pathlib.Path) -> None:
    try:
        # Groups of one record: any document can be read without its neighbours.
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    except RuntimeError as error:  # the library's only kind
        full = "No space left" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error


class _Encoder:
    """Texts to the documents of records."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        tokens = tokenizer.vocabulary()
        self.vocab_size = max(tokens.values()) + 1
        # Byte-level vocabularies mark a word's start by its blank, which a sentence begins without.
        self._before = " " if vocabulary.word_mark(tokens) == "Ġ" else ""

    def encode(self, text: str, max_tokens: int) -> Iterator[Document]:
        """Documents of 1 to `max_tokens` tokens."""
        sentences = [self._before + s for s in text_documents.split_sentences(text)]
        tokens, starts = [], []
        for sentence in self._tokenizer.encode_plain(sentences):
            if tokens and len(tokens) + len(sentence) > max_tokens:
                yield _document(tokens, starts)
                tokens, starts = [], []
            while len(sentence) > max_tokens:  # the document is empty here
                yield _document(sentence[:max_tokens], [0])
                sentence = sentence[max_tokens:]
            if sentence:
                starts.append(len(tokens))
                tokens += sentence
        if tokens:
            yield _document(tokens, starts)


def _document(tokens: list[int], starts: list[int]) -> Document:
    return np.array(tokens, np.int32), np.array(starts, np.int32)
