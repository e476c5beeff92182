"""GLUE tasks from a local folder in GLUE's own layout."""

import os
import pathlib

from mpojax.data import text_classification

_SST2_SPLITS = ("train", "dev", "test")


def load_sst2(data_dir: str | os.PathLike | None) -> text_classification.TextTask:
    """SST-2: train.tsv and dev.tsv, and test.tsv without labels, of the folder SST-2."""
    folder = find_folder(data_dir, "SST-2")
    splits = {}
    for name in _SST2_SPLITS:
        path = folder / f"{name}.tsv"
        if not path.is_file():
            continue
        rows = text_classification.read_tsv(path)
        if rows and "sentence" not in rows[0]:
            raise ValueError(f"{path} has no column 'sentence'; columns are {sorted(rows[0])}")
        texts = [row["sentence"].strip() for row in rows]
        labelled = bool(rows) and "label" in rows[0]
        labels = (
            text_classification.to_classes([r["label"] for r in rows], ("0", "1"))
            if labelled
            else None
        )
        splits[name] = text_classification.Split(texts, labels)
    if "train" not in splits or "dev" not in splits:
        raise FileNotFoundError(f"{folder} needs train.tsv and dev.tsv; found {sorted(splits)}")
    return text_classification.TextTask("sst2", splits, ("negative", "positive"))


def find_folder(data_dir: str | os.PathLike | None, task: str) -> pathlib.Path:
    """The folder of one GLUE task under `data_dir`, `$MPOJAX_DATA` or `../shared/data`.

    Raises:
      FileNotFoundError: names the folders that were tried.
    """
    root = pathlib.Path(data_dir or os.environ.get("MPOJAX_DATA") or "../shared/data").expanduser()
    candidates = [root / "glue" / task, root / task]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"no folder {' or '.join(map(str, candidates))}; pass data_dir (or set MPOJAX_DATA) to the "
        f"folder that holds glue/{task}"
    )
