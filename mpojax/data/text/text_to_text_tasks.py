"""Text-to-text tasks by name, and batches of several of them."""

import os
from collections.abc import Mapping, Sequence

from mpojax.data import mixture, pipeline, tasks
from mpojax.data.sources import bible, file_tasks, glue, glue_splits, readers
from mpojax.data.text import text_to_text

PAIRS_PREFIX = "pairs:"
_OWN = (file_tasks.PREFIX, PAIRS_PREFIX)
_ANY_TEXT = ("labels", "prefix")  # options with values that may be names of tasks
_BIBLE = "bible"
_OPTIONS = ("source", "target", "prefix", "name", "quoting")


def load_text_to_text(
    name: str, data_dir: str | os.PathLike | None = None, *, paper_splits: bool = True
) -> text_to_text.TextToTextTask:
    """Loads a task as text to text.

    `name` is one of

    - a GLUE task, `vader_movie`, or your own labelled files as `file:...`: see `load_task`;
    - `bible`: King James to World English verses (see `bible`); fetches its own data;
    - your own pairs of texts in .tsv, .csv, .jsonl or .parquet files, one per split:
      `pairs:train=a.tsv,dev=b.tsv;source=old;target=new;prefix=translate`, where `source` and
      `target` are columns (by default named so), `prefix` comes before every source (default:
      nothing), `name` is that of the task in results and `quoting` is as for `file:...`. Relative
      paths start at `data_dir`.

    Args:
      data_dir: see `load_task`.
      paper_splits: GLUE tasks with labelled splits for selection and test: see
        `glue_splits`. Off: the splits as published.

    Raises:
      FileNotFoundError, ImportError, ConnectionError, ValueError: as `load_task`.
    """
    if name == _BIBLE:
        splits = {
            split: text_to_text.TextPairs([f"bible: {text}" for text in old], new)
            for split, (old, new) in bible.load().items()
        }
        return text_to_text.TextToTextTask(name, splits)
    if name.startswith(PAIRS_PREFIX):
        return _load_pairs(name, data_dir)
    tasks.check_task(name, also=(_BIBLE,))
    task = tasks.load_task(name, data_dir)
    if paper_splits and name in glue.TASKS:
        task = glue_splits.paper_splits(task)
    return text_to_text.from_task(task)


def task_names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Several tasks from a comma list such as "cola,rte", from a sequence, or from both at once.

    Commas inside `file:...` and `pairs:...` stay with them: between splits (train=a,dev=b), and in
    the options that take several values or any text, `metric` up to the name of a task, `labels`
    and `prefix` up to another such entry. Behind those two, name the other tasks first, or give a
    sequence.

        >>> task_names("file:train=a.tsv,dev=b.tsv;name=mine,rte")
        ('file:train=a.tsv,dev=b.tsv;name=mine', 'rte')
    """
    lists = [value] if isinstance(value, str) else value
    return tuple(entry for text in lists for entry in _entries(text))


def _entries(text: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        if found and _belongs(part.strip(), found[-1]):
            found[-1] += f",{part}"
        elif part.strip():
            found.append(part)
    return [entry.strip() for entry in found]


def _belongs(part: str, entry: str) -> bool:
    """True if a part of a comma list belongs to the entry before it."""
    entry = entry.strip()
    if not part or not entry.startswith(_OWN) or part.startswith(_OWN):
        return False
    _, semicolon, option = entry.rpartition(";")
    if not semicolon:
        return "=" in part
    name = option.partition("=")[0].strip()
    return name in _ANY_TEXT or (name == "metric" and part not in (*tasks.TASKS, _BIBLE))


def _load_pairs(line: str, data_dir: str | os.PathLike | None) -> text_to_text.TextToTextTask:
    splits, *rest = line.removeprefix(PAIRS_PREFIX).split(";")
    example = "'pairs:train=a.tsv,dev=b.tsv;source=COLUMN;target=COLUMN'"
    files = file_tasks.pairs(splits.split(","), line, example)
    options = file_tasks.pairs([part for part in rest if part.strip()], line, example)
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ValueError(f"{line!r}: unknown options {unknown}; allowed are {list(_OPTIONS)}")
    source, target = options.get("source", "source"), options.get("target", "target")
    prefix = f"{options['prefix']} " if "prefix" in options else ""
    root = os.path.expanduser(data_dir or ".")
    loaded = {}
    for split, path in files.items():
        file = os.path.join(root, os.path.expanduser(path))
        table = readers.read(file, {source, target}, quoting=options.get("quoting", "auto"))
        if not len(table):
            raise ValueError(f"{table.path} holds no examples")
        sources = [prefix + text for text in table.texts(source)]
        loaded[split] = text_to_text.TextPairs(sources, table.texts(target))
    return text_to_text.TextToTextTask(options.get("name", "pairs"), loaded)


def multi_task(
    arrays: Mapping[str, pipeline.Arrays],
    batch_size: int,
    *,
    seed: int,
    temperature: float = 10.0,
    lengths: Sequence[int] = (),
) -> mixture.Mixture:
    """Training batches of several tasks, sampled with a temperature.

    A task of N examples gets a share proportional to N ** (1 / temperature): 1 = by size, 10 =
    nearly equal (the paper's), infinity = equal.

    Args:
      arrays: {task: arrays of its training split, as `TextPairs.encode` gives them}, all of one
        shape, with labels.

    Raises:
      ValueError: a temperature below 1; further as `Mixture`.
    """
    if not temperature >= 1.0:
        raise ValueError(f"temperature={temperature} must be at least 1 (shares by size)")
    return mixture.Mixture(
        arrays, batch_size, seed=seed, exponent=1.0 / temperature, lengths=lengths
    )
