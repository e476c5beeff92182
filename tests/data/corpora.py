"""Small corpora for tests: text folders, and corpus folders of given tokens."""

import dataclasses
import pathlib
import random

import numpy as np

from mpojax import data, files
from mpojax.data.corpus import building
from mpojax.data.corpus import shards as corpus_shards
from mpojax.data.tokenizers import loading

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "of", "river", "stone", "walked", "singing", "bridges", "under", "unremarkable")


def write_text(folder: pathlib.Path, files_of_text: int = 12, seed: int = 0) -> pathlib.Path:
    """A folder of .txt files of 1 to 30 sentences."""
    draw = random.Random(seed)
    for number in range(files_of_text):
        lines = [sentence(draw) for _ in range(draw.randint(1, 30))]
        path = folder / f"part{number % 3}" / f"{number:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(" ".join(lines) + "\n", encoding="utf-8")
    return folder


def sentence(draw: random.Random) -> str:
    words = [draw.choice(WORDS) for _ in range(draw.randint(2, 12))]
    return " ".join(words).capitalize() + "."


def from_tokens(
    folder: pathlib.Path,
    documents: list[tuple[list[int], list[int]]],
    vocab_size: int,
    continuations: bool = False,
    split: str = "train",
) -> data.Corpus:
    """A corpus of (tokens, sentence starts); every third ordinary token continues a word or none.

    Tokens 0 to 4 are the special ones.
    """
    names = [
        f"##t{n}" if continuations and n % 3 == 2 else f"t{n}"
        for n in range(len(SPECIAL), vocab_size)
    ]
    tokens = {name: number for number, name in enumerate((*SPECIAL, *names))}
    backend = loading.word_piece(tokens, lower_case=True)
    files.write_atomic(folder / "tokenizer.json", backend.to_str())
    arrays = [(np.array(t, np.int32), np.array(s, np.int32)) for t, s in documents]
    half = (len(arrays) + 1) // 2
    shards = []  # two, where there are two documents
    for number, part in enumerate((arrays[:half], arrays[half:])):
        if part:
            shard = corpus_shards.write_split(folder, f"{split}-{number}", part, vocab_size)
            shards.append({split: dataclasses.asdict(shard)})
    building.finish(folder, {}, shards)
    return data.Corpus(folder)


def consecutive(
    folder: pathlib.Path, lengths: list[int], sentence: int = 7, continuations: bool = False
) -> data.Corpus:
    """Documents whose tokens are 10, 11, 12, ... over all of them; sentences of equal length."""
    documents, place = [], 10
    for length in lengths:
        documents.append((list(range(place, place + length)), list(range(0, length, sentence))))
        place += length
    return from_tokens(folder, documents, place, continuations)
