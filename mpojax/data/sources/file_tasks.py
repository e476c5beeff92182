"""A user's own files as a task, described in one line."""

import os

from mpojax import files
from mpojax.data.text import classification as text_classification

PREFIX = "file:"
_EXAMPLE = "'file:train=a.tsv,dev=b.tsv;text=COLUMN;label=COLUMN'"
_OPTIONS = ("text", "pair", "label", "kind", "labels", "metric", "dev", "name", "quoting")


def load(line: str, data_dir: str | os.PathLike | None = None) -> text_classification.TextTask:
    """The task of a line like `file:train=a.tsv,dev=b.tsv;text=sentence`: see `data.load_task`.

    Raises:
      ValueError: the line does not parse; says what it may hold. Further as
        `text_classification.from_files`.
    """
    splits, *rest = line.removeprefix(PREFIX).split(";")
    named = pairs(splits.split(","), line)
    options = pairs([part for part in rest if part.strip()], line)
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ValueError(f"{line!r}: unknown options {unknown}; allowed are {list(_OPTIONS)}")
    dev = options.get("dev", "dev")
    if dev not in named:
        raise ValueError(
            f"{line!r}: no file for the split {dev!r}, by which models are compared; has "
            f"{sorted(named)}. Add {dev}=FILE, or name another split as in ;dev=test"
        )
    return text_classification.from_files(
        options.get("name", "file"),
        {split: files.join(data_dir or ".", path) for split, path in named.items()},
        text=options.get("text", "text"),
        label=options.get("label", "label"),
        pair=options.get("pair"),
        kind=options.get("kind", "classification"),
        labels=_several(options.get("labels", "")),
        metrics=_several(options.get("metric", "")),
        dev_split=dev,
        quoting=options.get("quoting", "auto"),
    )


def _several(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def pairs(parts: list[str], line: str, example: str = _EXAMPLE) -> dict[str, str]:
    """{name: value} of parts of a line that have the form name=value.

    Raises:
      ValueError: a part has another form, or a name occurs twice; shows the example.
    """
    result: dict[str, str] = {}
    for part in parts:
        name, equals, value = (text.strip() for text in part.partition("="))
        if not (name and equals and value):
            raise ValueError(
                f"{line!r}: {part!r} is not of the form name=value; write your own files as "
                f"{example}"
            )
        if name in result:
            raise ValueError(f"{line!r}: {name!r} is given twice")
        result[name] = value
    return result
