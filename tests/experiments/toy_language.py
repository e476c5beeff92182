"""Small texts, a tokenizer and settings for runs of language models."""

import json

import numpy as np

from configs.mpoe import base
from experiments import cells
from mpojax import data

SENTENCE = "the river flows to sea and a small boat goes with it while people sing old songs"
WORDS = SENTENCE.split()
TEXTS = "file:train=train.txt,dev=dev.txt,test=test.txt"
DECODER = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 32,
    "max_positions": 32,
    "dropout": 0.0,
    "embedding_dropout": 0.0,
    "attention_dropout": 0.0,
}


def write(folder):
    """Three texts, an encoder of them in `words`, a file of short documents."""
    for name, sentences, seed in (("train", 120, 0), ("dev", 12, 1), ("test", 14, 2)):
        (folder / f"{name}.txt").write_text(text(sentences, seed), encoding="utf-8")
    lines = [json.dumps({"text": line}) for line in text(12, 3).splitlines()]
    (folder / "short.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    whole = (folder / "train.txt").read_text(encoding="utf-8")
    data.train_bpe([whole], 300).save(folder / "words")
    return folder


def text(sentences, seed):
    """Lines of four to seven words, each of which decides which two may follow."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(sentences):
        place = int(rng.integers(len(WORDS)))
        line = [WORDS[place]]
        for _ in range(int(rng.integers(3, 7))):
            place = (place + 1 + 4 * int(rng.integers(2))) % len(WORDS)
            line.append(WORDS[place])
        lines.append(" ".join(line) + " .")
    return "\n".join(lines) + "\n"


def config(folder, **fields):
    """A fresh decoder of toy size; names of fields with __ for dots."""
    made = base.get_config()
    made.tokenizer, made.data_dir, made.dataset = str(folder / "words"), str(folder), TEXTS
    made.model_config = dict(DECODER)
    made.length, made.batch_size, made.eval_batch_size = 16, 8, 8
    made.steps, made.log_every, made.checkpoint_every = 4, 1, 0
    made.optimizer.learning_rate = 1e-2
    return put(made, fields)


def put(made, fields):
    """The config with these fields."""
    for name, value in fields.items():
        cells.set_field(made, name.replace("__", "."), value, "test")
    return made


def logged(folder, name):
    """{step: value} of a metric."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {m["step"]: m[name] for m in map(json.loads, lines) if name in m}
