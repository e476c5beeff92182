"""From a text folder to a corpus folder: parallel, resumable, the same bytes whatever the workers.

The work is cut into shards by the text and the settings alone. A shard is done when its marker file
is there, which is written last; a run that is killed loses at most the shards it was working on.
`plan.json` holds the settings, so that nothing is mixed with the rest of another run.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator

from mpojax import checks, files, tokenizer_folders
from mpojax.data.corpus import corpus as corpus_lib
from mpojax.data.corpus import shards as corpus_shards
from mpojax.data.corpus import workers as workers_lib
from mpojax.data.text import documents as text_documents
from mpojax.data.tokenizers import vocabulary
from mpojax.data.tokenizers.tokenizer import Tokenizer

_PLAN = "plan.json"
# By which a corpus' settings differ. What else is copied names special tokens, which it lacks.
_TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.txt", "tokenizer_config.json"),
    *("vocab.json", "merges.txt", "added_tokens.json", "encoder.json", "vocab.bpe"),
)
# A vocabulary is trained on a sample of about so much text.
_VOCABULARY_BYTES = 2**30
# (what, done, total): kilobytes of text.
Advance = Callable[[str, int, int], None]


@checks.settings()
class CorpusSettings:
    """Settings that the content of a corpus depends on.

    Attributes:
      vocab_size: of a vocabulary that is trained on the text; None: `tokenizer` is used.
      tokenizer: folder of a model's tokenizer.
      valid: fraction of the documents that is held out as the split "valid", chosen by the SHA-256
        of their text. Above 0, at least one document is held out.
      documents: how .txt files are cut into documents, "file", "paragraph" or "line".
      max_tokens: longer documents become several, cut where a sentence starts.
      shards: None: by the size of the text.
    """

    vocab_size: int | None = checks.field(checks.integer(1), None)
    tokenizer: str | os.PathLike | None = None
    valid: float = checks.field(checks.number(0, below=1), 0.02)
    documents: str = checks.field(checks.one_of(*text_documents.DOCUMENTS), "file")
    max_tokens: int = checks.field(checks.integer(16), 8192)
    shards: int | None = checks.field(checks.integer(1), None)

    def __post_init__(self):
        if (self.vocab_size is None) == (self.tokenizer is None):
            raise ValueError(
                f"pass one of vocab_size={self.vocab_size} (a vocabulary is trained on the text) "
                f"and tokenizer={self.tokenizer} (a folder)"
            )


def build(
    text: str | os.PathLike,
    out: str | os.PathLike,
    settings: CorpusSettings,
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
    out = files.at(out).absolute()
    tokenizer_from = _find_tokenizer(settings)
    root = files.local(text)
    paths = text_documents.find_files(root)
    _check_folder(out)
    pieces = text_documents.cut_files(paths, settings.documents)
    if not pieces:
        raise FileNotFoundError(f"no text in {root}: its {len(paths)} files are empty")
    with workers_lib.Workers(workers) as pool:
        threshold, source = _scan(pool, pieces, paths, root, settings, advance)
        count = min(settings.shards or _shard_count(pieces), len(pieces))
        plan = _plan(settings, tokenizer_from, source, count)
        if not _begin(out, plan):
            _put_tokenizer(out, settings, tokenizer_from, pieces, threshold, advance)
            groups = text_documents.group_pieces(pieces, count)
            shards = _write_shards(pool, out, settings, groups, threshold, advance)
            finish(out, plan, shards)
        _tidy(out)
    return corpus_lib.Corpus(out)


def _scan(pool, pieces, paths, root, settings, advance) -> tuple[int, dict]:
    """Reads all text once: (hash below which documents are held out, what the text is)."""
    threshold = int(settings.valid * 2**64)
    # Jobs of a fair size: there may be millions of small files, or a few large ones.
    # 64 MiB of text a job where there is much; 16 jobs keep the workers busy where there is little.
    groups = text_documents.group_pieces(pieces, min(len(pieces), 16 + _total(pieces) // 2**26))
    jobs = [(group, settings.documents, threshold) for group in groups if group]
    results = pool.map(corpus_shards.scan_pieces, jobs, _total(pieces), _told(advance, "reading"))
    scans = [scan for result in results for scan in result]
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
        # Too few documents for the fraction: the one with the lowest hash, and its exact copies.
        threshold = lowest + 1
    elif held_out == documents:
        # Everything would be held out: the text with the highest hash is left for training.
        threshold = highest
    digest = hashlib.sha256()
    for piece, scan in zip(pieces, scans, strict=True):
        digest.update(f"{piece.path.relative_to(root).as_posix()}\n{scan.sha256}\n".encode())
    source = {"files": len(paths), "bytes": _total(pieces), "sha256": digest.hexdigest()}
    return threshold, source


def _shard_count(pieces: list[text_documents.Piece]) -> int:
    # Enough for some parallel work on little text, files of a convenient size for much.
    total = _total(pieces)
    # Shards of at most 128 MiB of text; of less than 2 GiB one for each 4 MiB begun, up to 16.
    return max(-(-total // 2**27), min(16, -(-total // 2**22)))


def _told(advance: Advance, what: str) -> workers_lib.Advance:
    """Kilobytes of one stage, each number once."""
    last = None

    def tell(done: int, total: int) -> None:
        nonlocal last
        if (kilobytes := done // 1000) != last:
            last = kilobytes
            advance(what, kilobytes, total // 1000)

    return tell


def _total(pieces: list[text_documents.Piece]) -> int:
    return sum(piece.end - piece.start for piece in pieces)


# Settings and folder.


def _find_tokenizer(settings: CorpusSettings) -> pathlib.Path | None:
    """The tokenizer's folder, which has been found usable, or None."""
    if settings.tokenizer is None:
        return None
    folder = files.at(settings.tokenizer)
    vocabulary.SpecialTokens.of(Tokenizer.from_folder(folder).vocabulary(), str(folder))
    return folder


def _plan(
    settings: CorpusSettings, tokenizer: pathlib.Path | None, source: dict, shards: int
) -> dict:
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES if tokenizer else ():
        if (tokenizer / name).is_file():
            digest.update((tokenizer / name).read_bytes())
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
    """True if the corpus is complete; else the folder is ready for the work that is left.

    Raises:
      ValueError: it was begun with other settings; says which.
    """
    finished = (out / corpus_lib.DESCRIPTION).is_file()
    if out.is_dir():
        files.remove_leftovers(out)
    if [p.name for p in out.glob("*")] == [_PLAN]:
        (out / _PLAN).unlink()  # of a run that made nothing: it binds nobody
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
    return finished


def _put_tokenizer(out, settings, tokenizer, pieces, threshold, advance) -> None:
    """Copies the tokenizer, or trains one, where the folder has none yet."""
    # tokenizer.json, or the vocabulary without one, is last: no part is taken for the whole.
    if tokenizer:
        for name, content in reversed(tokenizer_folders.copies(tokenizer).items()):
            files.write_atomic(out / name, content)
    elif not (out / "tokenizer.json").is_file():
        texts = _VocabularyTexts(pieces, settings.documents, threshold, advance)
        trained = vocabulary.train(texts, settings.vocab_size)
        files.write_atomic(out / "tokenizer.json", trained.to_str(pretty=True) + "\n")


class _VocabularyTexts:
    """The documents that a vocabulary is trained on: not held out, and of the rest a sample."""

    def __init__(self, pieces, documents: str, threshold: int, advance: Advance):
        self._pieces, self._documents = pieces, documents
        self._tell = _told(advance, "vocabulary")
        share = min(1.0, _VOCABULARY_BYTES / _total(pieces))
        self._threshold = threshold
        # Hashes are uniform: this range above the threshold holds `share` of what is not held out.
        self._below = threshold + int(share * (2**64 - threshold))
        self._done, self._total = 0, 2 * _total(pieces)  # bytes of two passes

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            content = text_documents.read_piece(piece)
            for text in text_documents.documents_of(piece, content, self._documents):
                if self._threshold <= corpus_shards.document_hash(text) < self._below:
                    yield text
            self._done += len(content)
            self._tell(self._done, self._total)


def _write_shards(pool, out, settings, groups, threshold, advance) -> list[dict]:
    """{split: shard} of all shards, in order; those that are there are kept."""
    names = [f"{number:05d}-of-{len(groups):05d}" for number in range(len(groups))]
    jobs = [
        (out, name, group, settings.documents, settings.max_tokens, threshold)
        for name, group in zip(names, groups, strict=True)
        if not corpus_shards.marker_file(out, name).is_file()
    ]
    total = sum(_total(job[2]) for job in jobs)
    for _ in pool.map(corpus_shards.write_shard, jobs, total, _told(advance, "tokenising")):
        pass
    return [
        json.loads(corpus_shards.marker_file(out, name).read_text(encoding="utf-8"))
        for name in names
    ]


def finish(out: pathlib.Path, plan: dict, shards: list[dict]) -> None:
    """Describes the shards, [{split: fields of a Shard}], which makes the folder a corpus."""
    tokens = Tokenizer.from_folder(out).vocabulary()
    splits = {}
    for split in corpus_shards.SPLITS:
        own = [shard[split] for shard in shards if split in shard]
        if own:
            totals = {k: sum(s[k] for s in own) for k in ("documents", "tokens", "sentences")}
            splits[split] = totals | {"shards": own}
    if "train" not in splits:
        raise ValueError(f"no document outside of the held-out ones has a token; see {out}")
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
