"""Makes a corpus for pre-training from a folder of text, in worker processes.

    python -m tools.prepare_corpus --text=FOLDER --out=CORPUS --vocab_size=8000
    python -m tools.prepare_corpus --text=FOLDER --out=CORPUS --tokenizer=MODEL_FOLDER

FOLDER holds, at any depth, UTF-8 `.txt` files and `.jsonl` files with a field "text" per line. The
first form trains a lower-case WordPiece vocabulary on the text, the second takes the tokenizer of
a model (tokenizer.json or vocab.txt). `data.Corpus(CORPUS)` reads what is written;
`mpojax/data/corpus/corpus.py` describes it.

Nothing depends on the number of workers, not a byte. A run that was stopped, in whatever way, goes
on when the same command is started again; a corpus that is complete is left as it is.
"""

import contextlib
import logging as std_logging

from absl import flags, logging

from experiments import command_line
from mpojax import devices
from mpojax.data.corpus import building, corpus
from mpojax.data.text import documents as text_documents
from mpojax.training import progress

_TEXT = flags.DEFINE_string("text", None, "Folder of .txt and .jsonl files.")
_OUT = flags.DEFINE_string(
    "out", None, "Folder of the corpus, new or to be finished.", allow_override=True
)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder of a model's tokenizer.")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", None, "Size of a vocabulary to train on the text.")
_VALID = flags.DEFINE_float("valid", 0.02, "Fraction of the documents to hold out.")
_DOCUMENTS = flags.DEFINE_enum(
    "documents", "file", text_documents.DOCUMENTS, "What is one document in a .txt file."
)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 8192, "Longer documents are cut, where a sentence starts."
)
_SHARDS = flags.DEFINE_integer(
    "shards", None, "Number of shards; default: by the size of the text. A worker holds one."
)
_WORKERS = flags.DEFINE_integer("workers", None, "Processes; default: one per core.")


def build(
    text: str, out: str, settings: building.CorpusSettings, workers: int | None = None
) -> corpus.Corpus:
    """`building.build` with a progress bar per stage; `workers` default: one per core."""
    with contextlib.ExitStack() as stack:
        bars = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in bars:
                stack.close()  # the bar of the stage before
                bars[what] = stack.enter_context(progress.progress(what))
            bars[what](done, total, "kB of text")

        return building.build(
            text, out, settings, workers=workers or devices.num_cores(), advance=advance
        )


def summary(made: corpus.Corpus) -> str:
    """A line per split."""
    lines = [f"{made.folder}: vocabulary of {made.vocab_size} tokens"]
    tokens = sum(made.count(split, "tokens") for split in made.splits)
    for split, shards in made.splits.items():
        counts = [made.count(split, what) for what in ("documents", "sentences", "tokens")]
        lines.append(
            "{}: {:,} documents, {:,} sentences, {:,} tokens".format(split, *counts)
            + f" ({made.count(split, 'tokens') / tokens:.1%}) in {len(shards)} shard(s)"
        )
    return "\n".join(lines)


def _warn_of_few_documents(made: corpus.Corpus, valid: float) -> None:
    """Whole documents are held out: of a few long ones that may be far from what was asked."""
    held_out = made.count("valid", "tokens") if "valid" in made.splits else 0
    share = held_out / (held_out + made.count("train", "tokens"))
    if share > 2 * valid + 0.01:
        logging.warning(
            "%.0f %% of the text is held out, not %g %%: whole documents are, and there are few; "
            "--documents=paragraph (or line) makes more of them, --valid=0 holds nothing out",
            *(100 * share, 100 * valid),
        )


def main(argv: list[str]) -> None:
    """Entry point."""
    del argv
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    std_logging.getLogger("jax").setLevel(std_logging.WARNING)  # which accelerators there are not
    settings = building.CorpusSettings(
        vocab_size=_VOCAB_SIZE.value,
        tokenizer=_TOKENIZER.value,
        valid=_VALID.value,
        documents=_DOCUMENTS.value,
        max_tokens=_MAX_TOKENS.value,
        shards=_SHARDS.value,
    )
    made = build(_TEXT.value, _OUT.value, settings, _WORKERS.value)
    print(summary(made))
    _warn_of_few_documents(made, settings.valid)


if __name__ == "__main__":
    flags.mark_flags_as_required(["text", "out"])
    command_line.run(main)
