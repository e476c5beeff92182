"""Checkpoints of language models <-> (settings, flat dict of arrays), with strict name coverage.

What is particular to one model type is data: see `gpt2`, `t5` and `llama`.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from absl import logging

from mpojax import checks, models
from mpojax.io import sizes
from mpojax.io.hf import language_settings, tensor_names
from mpojax.io.hf.architectures import Row
from mpojax.io.hf.language_architectures import Config, LanguageArchitecture

# Checkpoint name -> (paths of the arrays side by side in it, transform).
Table = dict[str, tuple[tuple[str, ...], str]]

HEAD = "lm_head.weight"


def import_model(
    source: Mapping, tensors: Mapping[str, np.ndarray], where: str
) -> tuple[Config, dict[str, np.ndarray]]:
    """Settings and arrays by logical path from a checkpoint's configuration and tensors.

    Args:
      source: content of config.json, whose model type is one of `language_settings`.
      tensors: content of the weight files.
      where: named in errors, such as the folder.

    Raises:
      ValueError: an unsupported architecture or setting; or tensors that are missing,
        unexpected or of another shape.
    """
    architecture, name = language_settings.read_architecture(source, where)
    values = language_settings.checked(architecture, source, where)
    tables = {architecture.table, *architecture.copies} - {HEAD}
    tensors = tensor_names.bare(
        tensors, tables, architecture.prefix, architecture.is_harmless, where
    )
    tied = _is_tied(architecture, name, values, tensors, where)
    tensors = _without_copies(architecture, tied, tensors, where)
    config = language_settings.to_config(architecture, source, values, tied, where)
    sizes.check(config, tensors, where)
    expected = models.array_shapes(config)
    table = name_table(architecture.rows[config.gated], config, expected)
    return config, collect(table, tensors, expected, where)


def export_model(
    config: Config, arrays: Mapping[str, np.ndarray]
) -> tuple[dict, dict[str, np.ndarray]]:
    """Inverse of `import_model`: content of config.json, and tensors by transformers' names.

    Raises:
      ValueError: the model has no counterpart in transformers.
    """
    if config.experts:
        raise ValueError(
            "the model has experts in its feed-forward blocks (MPOE or a mixture of dense ones), "
            "which GPT-2, T5 and LLaMA of transformers do not know: it has no counterpart there. "
            "save_pretrained keeps it."
        )
    if config.adapters:
        raise ValueError(
            "the model has adapters, which transformers cannot load: "
            "export_huggingface(merge(model), folder)."
        )
    architecture = language_settings.architecture_for(config)
    content = language_settings.from_config(architecture, config)
    table = name_table(architecture.rows[config.gated], config, arrays)
    covered = {path for paths, _ in table.values() for path in paths}
    if unmatched := sorted(set(arrays) - covered):
        raise ValueError(
            f"{checks.listed(unmatched)} have no counterpart in {architecture.classes[0]} of "
            "transformers."
        )
    tensors = {}
    for name, (paths, transform) in table.items():
        parts = [np.asarray(arrays[path], np.float32) for path in paths]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        tensors[name if name == HEAD else architecture.prefix + name] = np.ascontiguousarray(
            whole.T if transform == "transpose" else whole
        )
    if config.tied and content["tie_word_embeddings"] is False:
        tensors[HEAD] = tensors[architecture.prefix + architecture.table]
    return content, tensors


def name_table(rows: Iterable[Row], config: Config, arrays: Mapping) -> Table:
    """The names of a checkpoint that holds exactly these arrays."""
    numbers = {
        "{i}": range(config.num_layers),
        "{j}": range(getattr(config, "num_decoder_layers", 0)),
    }
    for mark, layers in numbers.items():
        rows = [
            (name.replace(mark, str(layer)), path.replace(mark, str(layer)), transform)
            for name, path, transform in rows
            for layer in (layers if mark in name else (0,))
        ]
    table: Table = {}
    for name, path, transform in rows:
        if path in arrays:
            paths, _ = table.get(name, ((), transform))
            table[name] = ((*paths, path), transform)
    return table


def collect(
    table: Table,
    tensors: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    where: str,
) -> dict[str, np.ndarray]:
    """Arrays by logical path, from exactly the tensors that the table names.

    Raises:
      ValueError: tensors are missing, unexpected, of another shape or not floating point.
    """
    shapes = {}
    for name, (paths, transform) in table.items():
        shape = (*expected[paths[0]][:-1], sum(expected[path][-1] for path in paths))
        shapes[name] = shape[::-1] if transform == "transpose" else shape
    models.check_coverage(shapes, tensors, f"the weights in {where} do not fit its configuration")
    arrays = {}
    for name, (paths, transform) in table.items():
        whole = tensors[name].T if transform == "transpose" else tensors[name]
        ends = np.cumsum([expected[path][-1] for path in paths])[:-1]
        arrays.update(zip(paths, np.split(whole, ends, axis=-1), strict=True))
    return arrays


def _is_tied(architecture: LanguageArchitecture, name: str, values, tensors, where: str) -> bool:
    """True if logits come from the token embedding."""
    if name in architecture.headless:
        if values["tie_word_embeddings"] is False:
            raise ValueError(
                f"{where} is a {name} with tie_word_embeddings=False: it has no output map, so it "
                f"gives no logits. Give a {architecture.classes[0]}."
            )
        logging.info("%s is a %s; logits come from its token embedding", where, name)
        return True
    if architecture.tensors_decide in values:
        head, table = tensors.get(HEAD), tensors.get(architecture.table)
        return head is None or np.array_equal(head, table)
    return values["tie_word_embeddings"] is not False


def _without_copies(
    architecture: LanguageArchitecture, tied: bool, tensors: Mapping, where: str
) -> dict[str, np.ndarray]:
    """Drops what is the token embedding under another name."""
    copies = [name for name in architecture.copies if name in tensors and (tied or name != HEAD)]
    table = tensors.get(architecture.table)
    if table is None:
        # Where one matrix has several names, a file may hold it under any of them.
        name = next(iter(copies), None)
        if name is None:
            return dict(tensors)
        table = tensors[name]
    for name in copies:
        if not np.array_equal(tensors[name], table):
            raise ValueError(
                f"{where}: {name} differs from the token embedding {architecture.table}, although "
                "the configuration says that they are one (tie_word_embeddings)."
            )
    kept = {name: tensor for name, tensor in tensors.items() if name not in copies}
    return {**kept, architecture.table: table}
