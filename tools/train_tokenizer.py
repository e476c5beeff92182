"""Trains a byte-level BPE tokenizer on plain text, for language models.

    python -m tools.train_tokenizer --text=brown+wikipedia --data_dir=TEXTS --out=FOLDER

The text is what `data.load_texts` loads by the name; only its train split is read. FOLDER gets
tokenizer.json and tokenizer_config.json, for `data.Tokenizer.from_folder(FOLDER)`: at most
--vocab_size tokens (8000), of which ids 0 to 2 are `<pad>`, `<bos>` and `<eos>`. The same text
gives the same files.
"""

import os

from absl import flags

from experiments import command_line
from mpojax import data, files

_TEXT = flags.DEFINE_string("text", None, "Text by name: see data.load_texts.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where relative names are looked for.", allow_override=True
)
_OUT = flags.DEFINE_string("out", None, "New folder of the tokenizer.", allow_override=True)
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 8000, "Tokens, at most.", allow_override=True)


def train(
    text: str, out: str | os.PathLike, vocab_size: int, data_dir: str | os.PathLike | None = None
) -> data.Tokenizer:
    """Trains a tokenizer on the train split of a text and saves it.

    Raises:
      FileExistsError: `out` already has a tokenizer.
      FileNotFoundError, ValueError: as `data.load_texts` and `data.train_bpe`.
      OSError: `out` cannot be written.
    """
    out = files.at(out)
    if (out / "tokenizer.json").exists():
        raise FileExistsError(f"{out} already has a tokenizer.json; choose another folder")
    tokenizer = data.train_bpe(data.load_texts(text, data_dir)["train"], vocab_size)
    tokenizer.save(out)
    return tokenizer


def main(argv: list[str]) -> None:
    """Entry point."""
    del argv
    made = train(_TEXT.value, _OUT.value, _VOCAB_SIZE.value, _DATA_DIR.value)
    print(f"{_OUT.value}: vocabulary of {made.vocab_size} tokens")


if __name__ == "__main__":
    flags.mark_flags_as_required(["text", "out"])
    command_line.run(main)
