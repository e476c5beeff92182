"""Toy models and texts under the names that the documentation uses."""

import dataclasses
import pathlib

import jax
import numpy as np
from flax import nnx

from mpojax import data, io, models
from tests.experiments import toy_language
from tests.io import helpers, language_helpers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "a an the film story is was not clever fine dull bad good for me what i had hoped . , !"


def write(folder: pathlib.Path) -> pathlib.Path:
    """`bert-folder` and the like, and texts, in `folder`."""
    toy_language.write(folder)  # train.txt, test.txt, and their tokenizer
    words = WORDS.split()
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, rng.integers(4, 12))) for _ in range(400)]
    (folder / "sentences.txt").write_text("\n".join(lines), encoding="utf-8")
    _encoder(folder / "bert-folder", [*SPECIAL, *words])
    for index, name in enumerate(("sst2", "mrpc")):
        _fine_tuned(folder / "bert-folder", folder / f"{name}-folder", 1.0 + 0.01 * (index + 1))
    path = folder / "path/to/a/bert/folder"  # in the README
    path.parent.mkdir(parents=True)
    path.symlink_to(folder / "bert-folder")
    for name, settings in (("gpt2", language_helpers.GPT2), ("llama", language_helpers.LLAMA)):
        _decoder(folder / f"{name}-folder", folder / "words", settings)
    return folder


def _encoder(folder: pathlib.Path, vocabulary: list[str]) -> None:
    settings = dataclasses.replace(helpers.SETTINGS, num_layers=1, vocab_size=len(vocabulary))
    content = helpers.CONFIG | {"num_hidden_layers": 1, "vocab_size": len(vocabulary)}
    helpers.write(folder, content, helpers.tensors(settings))
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")


def _fine_tuned(base: pathlib.Path, folder: pathlib.Path, factor: float) -> None:
    """The model of another folder with a head, all else times a factor."""
    moved = jax.tree.map(lambda w: factor * w, io.load_pretrained(base))
    model = models.with_head(moved, 2, rngs=nnx.Rngs(0))
    io.save_pretrained(model, folder, tokenizer_from=base)


def _decoder(folder: pathlib.Path, words: pathlib.Path, settings: models.DecoderConfig) -> None:
    tokenizer = data.Tokenizer.from_folder(words)
    settings = dataclasses.replace(settings, vocab_size=tokenizer.vocab_size, num_layers=1)
    helpers.write(folder, *language_helpers.checkpoint(settings))
    for path in words.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
