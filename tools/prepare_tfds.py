"""Converts GLUE's own files, or SQuAD's, into TensorFlow Datasets folders, without TensorFlow.

    python -m tools.prepare_tfds --data_dir=GLUE_FOLDER --task=sst2 --out=DIR

writes `DIR/glue/sst2/2.0.0` in array_record format, with the names, features and classes of
TensorFlow Datasets' own `glue/sst2`; `data.load_task("sst2", "DIR")` and
`tensorflow_datasets.data_source("glue/sst2", data_dir="DIR")` then read it. `--task` takes several
names with commas, or `all` for those that are found. Folders already there are kept.

Tasks that TensorFlow Datasets publishes without test labels keep theirs if the files have them.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from absl import flags, logging

from experiments import command_line
from mpojax import data, files
from mpojax.data.sources import glue, squad
from mpojax.data.sources import tfds as tfds_folders
from mpojax.training import progress

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    raise SystemExit(
        "this tool needs tensorflow-datasets (no TensorFlow): pip install -e '.[tfds]'"
    ) from error

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the original files.")
_TASK = flags.DEFINE_string("task", None, "Task, tasks with commas, or all.")
_OUT = flags.DEFINE_string(
    "out", None, "Root folder of the TensorFlow Datasets folders.", allow_override=True
)

TASKS = (*glue.TASKS, "squad")
_VERSIONS = {"glue": "2.0.0", "squad": "3.0.0"}


def convert(task: data.TextTask, out: str | os.PathLike) -> pathlib.Path:
    """Writes one task and returns its folder, which is whole or absent; one already there is kept.

    Raises:
      ValueError: no GLUE task and not SQuAD.
      OSError: the folder cannot be written; says why.
    """
    if task.name not in TASKS:
        raise ValueError(f"task {task.name!r} cannot be converted; allowed are {list(TASKS)}")
    dataset, config = ("squad", tfds_folders.SQUAD_CONFIG)
    if task.name != "squad":
        dataset, config = "glue", task.name
    target = files.here(out).absolute() / dataset / config / _VERSIONS[dataset]
    if target.exists():
        logging.info("%s is already there; remove it to convert again", target)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(target.parent)
        # Next to its place, so that the last step is one rename.
        with files.temporary_folder(target.parent) as temporary:
            builder = _builder_class(dataset)(task, config, temporary)
            settings = tfds.download.DownloadConfig(
                compute_stats=tfds.download.ComputeStatsMode.SKIP
            )
            with contextlib.redirect_stdout(None):  # it would name the temporary folder
                builder.download_and_prepare(download_config=settings)
            os.replace(builder.data_path, target)
    except OSError as error:
        raise files.explain(error, target) from error
    logging.info("wrote %s", target)
    return target


def convert_all(data_dir: str, names: str, out: str) -> list[pathlib.Path]:
    """Converts the named tasks, or with "all" every one that is found; returns their folders.

    Raises:
      FileNotFoundError: a named task, or with "all" every one, is missing.
      ValueError: an unknown name.
    """
    if not files.at(data_dir).is_dir():
        raise FileNotFoundError(f"no folder {data_dir}; pass another --data_dir")
    chosen = TASKS if names == "all" else tuple(name.strip() for name in names.split(","))
    unknown = sorted(set(chosen) - set(TASKS))
    if unknown:
        raise ValueError(f"unknown tasks {unknown}; allowed are {list(TASKS)} and all")
    written = []
    for name in chosen:
        try:
            task = data.load_task(name, data_dir)
        except FileNotFoundError as error:
            if names != "all":
                raise
            logging.info("%s left out: %s", name, error)
            continue
        written.append(convert(task, out))
    if not written:
        raise FileNotFoundError(f"{data_dir} holds the files of no task of {list(TASKS)}")
    return written


def _builder_class(dataset: str) -> type:
    # Not registered: TensorFlow Datasets has data sets of these names.
    with tfds.core.registered.skip_registration():
        # The class names the data set and its folders.
        return type(dataset.capitalize(), (_TaskBuilder,), {"name": dataset})


with tfds.core.registered.skip_registration():

    class _TaskBuilder(tfds.core.GeneratorBasedBuilder):
        """Writes a task in memory as TensorFlow Datasets would."""

        VERSION = tfds.core.Version("1.0.0")  # each configuration has its own

        def __init__(self, task: data.TextTask, config: str, folder: pathlib.Path):
            self._task = task
            version = _VERSIONS[self.name]
            super().__init__(
                data_dir=folder,
                config=tfds.core.BuilderConfig(name=config, version=version, description=""),
                file_format="array_record",
            )

        def _info(self) -> tfds.core.DatasetInfo:
            make = _squad_features if self._task.kind == "span" else _glue_features
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{self._task.name}, converted by mpojax from the original files.",
                features=tfds.features.FeaturesDict(make(self._task)),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager) -> dict[str, Iterator]:
            return {
                glue.hub_split(name): self._generate_examples(name, split)
                for name, split in self._task.splits.items()
            }

        def _generate_examples(self, name: str, split: data.Split) -> Iterator:
            make = _squad_example if self._task.kind == "span" else _glue_example
            with progress.progress(f"{self._task.name}, {name}") as advance:
                for number in range(len(split)):
                    yield number, make(self._task, split, number)
                    advance(number + 1, len(split), "examples")


def _glue_features(task: data.TextTask) -> dict:
    settings = glue.TASKS[task.name]
    features = {name: tfds.features.Text() for name in settings.features or settings.columns}
    label = tfds.features.ClassLabel(names=task.label_names) if task.label_names else np.float32
    return features | {"label": label, "idx": np.int32}


def _glue_example(task: data.TextTask, split: data.Split, number: int) -> dict:
    settings = glue.TASKS[task.name]
    texts = (split.texts,) if split.pairs is None else (split.texts, split.pairs)
    columns = settings.features or settings.columns
    example = {name: column[number] for name, column in zip(columns, texts, strict=True)}
    label = -1 if split.labels is None else split.labels[number].item()
    return example | {"label": label, "idx": number}


def _squad_features(task: data.TextTask) -> dict:
    answer = {"text": tfds.features.Text(), "answer_start": np.int32}
    texts = {name: tfds.features.Text() for name in ("title", "context", "question")}
    return {"id": np.str_, "answers": tfds.features.Sequence(answer)} | texts


def _squad_example(task: data.TextTask, split: squad.SpanSplit, number: int) -> dict:
    return {
        "id": split.ids[number],
        "title": "",  # of the article; plays no part in the task
        "context": split.pairs[number],
        "question": split.texts[number],
        "answers": {
            "text": list(split.answers[number]),
            "answer_start": list(split.answer_starts[number]),
        },
    }


def main(argv: list[str]) -> None:
    """Entry point."""
    del argv
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().addFilter(lambda r: "tensorflow_datasets" not in r.pathname)
    tfds.disable_progress_bar()
    convert_all(_DATA_DIR.value, _TASK.value, _OUT.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["data_dir", "task", "out"])
    command_line.run(main)
