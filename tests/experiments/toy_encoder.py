"""A small encoder, a task of two labels and settings for runs that fine-tune it."""

from flax import nnx

from mpojax import io, models

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "plot", "fine", "poor"]
SETTINGS = models.EncoderConfig(
    vocab_size=40,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    max_positions=16,
)


def write_checkpoint(folder, settings=SETTINGS):
    """A random model as a Hugging Face folder with its vocabulary; returns the folder."""
    io.export_huggingface(models.build(settings, rngs=nnx.Rngs(0)), folder)
    write_vocabulary(folder)
    return folder


def write_vocabulary(folder):
    """`vocab.txt` of `WORDS`."""
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")


def write_texts(folder, **counts):
    """A TSV file of so many texts for each split; the label is named in the text."""
    for name, count in counts.items():
        lines = [("good fine film\tgood", "bad poor plot\tbad")[i % 2] for i in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return folder


def config(made, checkpoint, texts):
    """`made` for a few short steps on these files, without dropout."""
    made.model, made.data_dir = str(checkpoint), str(texts)
    made.task = "file:train=train.tsv,dev=dev.tsv"
    made.max_length, made.lengths = 8, (8,)
    made.batch_size = made.eval_batch_size = 8
    made.pooling, made.dropout = "mean", 0.0
    made.optimizer.learning_rate = 1e-2
    return made
