"""Names of tensors in checkpoints <-> logical paths of arrays, for any table of names.

A table maps the name of a module in the checkpoint to a `Module`, which says where its tensors are
in the model. Both have marks such as `{i}` for the number of a layer; a mark in the name alone is
an index into the leading axis of the arrays, such as `{e}` for the number of an expert. What is no
array of the model at hand, such as the bias of a map without one, does not count.

    {"h.{i}.attn.c_proj": conv1d("layers/{i}/attention/out"), "ln_f": norm("final_norm")}
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from mpojax import files, models

Shapes = Mapping[str, tuple[int, ...]]
# {mark: (what it stands for in the checkpoint's name, in the path) for each value}.
Marks = Mapping[str, Sequence[tuple[int, int]]]
# Put into names by torch.compile, FSDP and activation checkpointing, wherever a module is wrapped.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Old checkpoints name the parameters of layer norms after the original TensorFlow code.
_OLD_SUFFIXES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}


class Convert(NamedTuple):
    """A change of values or of their order that keeps the shape, and its inverse.

    Both are functions of (array in the orientation of the model, model config).
    """

    read: Callable[[np.ndarray, models.Config], np.ndarray]
    write: Callable[[np.ndarray, models.Config], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Module:
    """The tensors of one module of a checkpoint.

    Attributes:
      paths: of the model's modules; several stand side by side in one tensor, along the last axis
        of the arrays.
      leaves: {last part of the tensor's name: last part of the array's path}.
      transpose: whether matrices are (out_features, in_features).
      convert: what else differs; it comes before the split into several.
      when: models of which settings have it; None for all.
    """

    paths: tuple[str, ...]
    leaves: Mapping[str, str]
    transpose: bool = False
    convert: Convert | None = None
    when: Callable[[models.Config], bool] | None = None


_LINEAR = {"weight": "kernel", "bias": "bias"}


def linear(*paths: str, **more) -> Module:
    """A linear map of torch, whose weight is (out_features, in_features)."""
    return Module(paths, _LINEAR, transpose=True, **more)


def conv1d(*paths: str, **more) -> Module:
    """A linear map of GPT-2, whose weight is (in_features, out_features)."""
    return Module(paths, _LINEAR, **more)


def norm(path: str, **more) -> Module:
    """A layer norm or RMS norm."""
    return Module((path,), {"weight": "scale", "bias": "bias"}, **more)


def table(path: str) -> Module:
    """An embedding."""
    return Module((path,), {"weight": "table"})


def bias(path: str) -> Module:
    """A bias by itself."""
    return Module((path,), {"bias": "bias"})


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint: the paths of the arrays that it holds; see `Module`.

    Attributes:
      paths, transpose, convert: see `Module`.
      index: into the leading axis of the arrays, where it holds a slice of each; None: all.
    """

    paths: tuple[str, ...]
    transpose: bool
    convert: Convert | None
    index: int | None = None

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Its shape, from those of the arrays."""
        whole = (*shapes[self.paths[0]][:-1], sum(shapes[path][-1] for path in self.paths))
        # A slice lacks the leading axis, such as that of experts.
        whole = whole if self.index is None else whole[1:]
        return whole[::-1] if self.transpose else whole

    def split(self, tensor: np.ndarray, shapes: Shapes, config=None) -> dict[str, np.ndarray]:
        """{logical path: array, or slice of it}."""
        whole = tensor.T if self.transpose else tensor
        widths = [shapes[path][-1] for path in self.paths]
        return dict(zip(self.paths, self.parts(whole, widths, config), strict=True))

    def parts(self, whole: np.ndarray, widths: Sequence[int], config=None) -> list[np.ndarray]:
        """Arrays (..., width) of each path out of one of all (..., sum of widths)."""
        whole = whole if self.convert is None else self.convert.read(whole, config)
        # np.split takes the starts of all parts but the first.
        return np.split(whole, np.cumsum(widths)[:-1], axis=-1)

    def whole(self, parts: Sequence[np.ndarray], config=None) -> np.ndarray:
        """The inverse of `parts`."""
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        return whole if self.convert is None else self.convert.write(whole, config)

    def join(self, arrays: Mapping[str, np.ndarray], config=None) -> np.ndarray:
        """The inverse of `split`, float32."""
        parts = [
            arrays[path] if self.index is None else arrays[path][self.index] for path in self.paths
        ]
        parts = [np.asarray(part, np.float32) for part in parts]
        whole = self.whole(parts, config)
        return np.ascontiguousarray(whole.T if self.transpose else whole)


def tensors_of(
    modules: Mapping[str, Module], marks: Marks, config: models.Config, arrays: Collection[str]
) -> dict[str, Tensor]:
    """The tensors, by name, of a checkpoint that holds these arrays."""
    found = {}
    for template, module in modules.items():
        if module.when is not None and not module.when(config):
            continue
        for name, filled, index in _filled(template, module.paths, marks):
            for leaf, own in module.leaves.items():
                paths = tuple(p for m in filled if (p := f"{m}/{own}") in arrays)
                if paths:
                    tensor = Tensor(paths, module.transpose, module.convert, index)
                    found[f"{name}.{leaf}"] = tensor
    return found


def _filled(
    name: str, paths: tuple[str, ...], marks: Marks
) -> Iterator[tuple[str, list[str], int | None]]:
    """(name, paths, index) for all values of the marks."""
    used = [mark for mark in marks if any(f"{{{mark}}}" in text for text in (name, *paths))]
    for numbers in itertools.product(*(marks[mark] for mark in used)):
        in_name = {mark: number[0] for mark, number in zip(used, numbers, strict=True)}
        in_path = {mark: number[1] for mark, number in zip(used, numbers, strict=True)}
        # Marks of the name alone index into the arrays.
        index = [n for mark, n in in_path.items() if not any(f"{{{mark}}}" in p for p in paths)]
        filled = [path.format(**in_path) for path in paths]
        yield name.format(**in_name), filled, index[0] if index else None


def read(
    wanted: Mapping[str, Tensor],
    tensors: Mapping[str, np.ndarray],
    shapes: Shapes,
    config: models.Config,
    source: str,
) -> dict[str, np.ndarray]:
    """Arrays by logical path, from exactly the wanted tensors.

    Raises:
      ValueError: tensors are missing, unexpected, of another shape or not floating point.
    """
    expected = {name: tensor.shape(shapes) for name, tensor in wanted.items()}
    models.check_coverage(
        expected, tensors, f"the weights in {source} do not fit its configuration"
    )
    sources: dict[str, list] = {}
    for name, tensor in wanted.items():
        for path in tensor.paths:
            sources.setdefault(path, []).append((tensor, tensors[name]))
    return {path: _array(path, parts, shapes, config) for path, parts in sources.items()}


def _array(path: str, sources: list[tuple[Tensor, Any]], shapes: Shapes, config: models.Config):
    """The array of a path, of one tensor or of slices; read when asked for where these are."""

    def read() -> np.ndarray:
        ordered = sorted(sources, key=lambda source: source[0].index or 0)
        parts = [t.split(np.asarray(stored), shapes, config)[path] for t, stored in ordered]
        return parts[0] if ordered[0][0].index is None else np.stack(parts)

    stored = sources[0][1]
    is_read = isinstance(stored, np.ndarray)
    return read() if is_read else files.StoredArray(shapes[path], stored.dtype, read)


def bare(
    tensors: Mapping[str, np.ndarray],
    embeddings: Collection[str],
    prefix: str,
    ignored_buffers: str,
    source: str,
) -> dict[str, np.ndarray]:
    """Tensors by the names that the bare model of transformers gives them.

    Args:
      tensors: by the names in the file.
      embeddings: names of the token embedding in the bare model, by which a prefix is known that
        DataParallel (`module.`), Lightning (`model.`), sentence-transformers (`0.auto_model.`) or a
        user's own class has put before all names.
      prefix: what task models of transformers put before the names of the bare model.
      ignored_buffers: regular expression for constant buffers, which are left out.
      source: named in errors and logs.

    Raises:
      ValueError: two tensors of one name.
    """
    names = {name: _WRAPPERS.sub("", name) for name in tensors}
    outer = _outer(names.values(), embeddings, prefix)
    names = {name: inner.removeprefix(outer) for name, inner in names.items()}
    if changed := [name for name, inner in names.items() if name != inner]:
        logging.info("%s: tensors such as %s are read as %s", source, changed[0], names[changed[0]])
    plain: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        short = names[name].removeprefix(prefix)
        for old, new in _OLD_SUFFIXES.items():
            short = short.removesuffix(old) + new if short.endswith(old) else short
        if re.fullmatch(ignored_buffers, short):
            continue
        if short in plain:
            raise ValueError(
                f"{source} holds {short} twice, with and without prefix or old suffix."
            )
        plain[short] = tensor
    return plain


def without_copies(
    tensors: Mapping[str, np.ndarray], embedding: str, copies: Collection[str], source: str
) -> dict[str, np.ndarray]:
    """Tensors with one copy of the token embedding; a file may hold it under any of the names.

    Raises:
      ValueError: a copy differs.
    """
    kept = {name: tensor for name, tensor in tensors.items() if name not in copies}
    for copy in filter(tensors.__contains__, copies):
        if not np.array_equal(tensors[copy], kept.setdefault(embedding, tensors[copy])):
            raise ValueError(
                f"{source}: {copy} differs from the token embedding {embedding}; only tied output "
                "maps are supported here (tie_word_embeddings)."
            )
    return kept


def _outer(names: Collection[str], embeddings: Collection[str], prefix: str) -> str:
    """What stands before the token embedding's name and the prefix of transformers."""
    found = {
        name.removesuffix(embedding).removesuffix(prefix)
        for name in names
        for embedding in embeddings
        if name == embedding or name.endswith(f".{embedding}")
    }
    return found.pop() if len(found) == 1 else ""
