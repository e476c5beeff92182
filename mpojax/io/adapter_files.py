"""Adapters in files of their own: adapter.safetensors with the arrays, adapter.json with the rest.

Arrays of equal shape in several layers are one tensor, layers/*/attention/query/adapter/down, with
an axis of layers in front: the header of a file stays small. What an unstructured search kept are
two tensors: indices into all arrays one after the other, by path, and values.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from mpojax import checks, files, models, patterns
from mpojax.compression import adapters as adapters_lib
from mpojax.io import weights
from mpojax.models.arrays import check_finite, is_floating
from mpojax.nn import AdapterSettings

# Version 1 drew the same offset starts in every layer.
FORMAT_VERSION = 2
WEIGHTS, SETTINGS = "adapter.safetensors", "adapter.json"
_INDICES, _VALUES = "entries/indices", "entries/values"
_LAYER = re.compile(r"layers/(\d+)/")
_PAIRS = checks.sequence(checks.pair(checks.text(), checks.mapping(checks.anything())))
_REQUIRED = {
    "adapters": checks.Allowed(
        "a list of pairs (regular expression, settings), which is not empty",
        lambda value: _PAIRS.accepts(value) and len(value) > 0,
    ),
    "adapter_scale": checks.number(),
    "base": checks.text(100),
    "layers": checks.mapping(checks.sequence(checks.integer(0))),
}
_FIELDS = _REQUIRED | {
    "offset_bases": checks.sequence(checks.sequence(checks.number(), 2)),
    "parameters": checks.integer(0),
}


def save_adapter(
    model: models.Model, folder: str | os.PathLike, *, mask: Mapping[str, np.ndarray] | None = None
) -> None:
    """Writes the adapters of a model, and the head of its task; nothing of the base model.

    Of parameters in place the new values are kept. The files hold a fingerprint of all parameters
    that are not tuned.

    Args:
      model: with adapters (`compression.add_adapters`).
      folder: made where it does not exist; an adapter that is there is replaced.
      mask: {array path: boolean array}: only these entries of the adapters are written; all others
        must be as the adapters were at their start, and are zero or what the base has.

    Raises:
      ValueError: a model without adapters; a mask that does not fit.
    """
    tuned = models.adapter_arrays(model)
    if not tuned:
        raise ValueError("the model has no adapters to save; use io.save_pretrained.")
    arrays = models.to_arrays(model)
    own = {name: np.asarray(arrays[name], np.float32) for name in tuned}
    tensors, layers = _stacked(own) if mask is None else (_entries(own, mask), {})
    values = own.values() if mask is None else [tensors[_VALUES]]
    content = {
        "format_version": FORMAT_VERSION,
        "adapters": _saved_settings(model),
        "adapter_scale": model.config.adapter_scale,
        "parameters": sum(array.size for array in values),
        "base": fingerprint(model),
        "offset_bases": _offset_bases(model),
        "layers": layers,
    }
    for name in _head_names(model.config, arrays):
        tensors[name] = np.asarray(arrays[name], np.float32)
    folder = files.at(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Settings last: a folder without them is none.
    (folder / SETTINGS).unlink(missing_ok=True)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    files.write_atomic(folder / WEIGHTS, safetensors_numpy.save(tensors))
    files.write_atomic(folder / SETTINGS, json.dumps(content, separators=(",", ":")) + "\n")


def load_adapter(base: models.Model, folder: str | os.PathLike) -> models.Model:
    """The base model with the adapters of a folder; `base` itself stays as it is.

    Raises:
      FileNotFoundError: no adapter there.
      ValueError: a damaged or newer file, another base model than the one that the adapter was
        tuned on, arrays that are missing, unexpected or of another shape.
    """
    folder = files.local(folder)
    content = _read_settings(folder)
    tensors = weights.read_weights(folder / WEIGHTS)
    check_finite(tensors, str(folder / WEIGHTS))
    held = sum(tensor.size for tensor in tensors.values())
    model = _with_adapters(base, content, held, folder)
    _check_base(base, model, content, folder)
    arrays, tuned = models.to_arrays(model), models.adapter_arrays(model)
    head = set(_head_names(model.config, arrays))
    new = {name: tensors.pop(name) for name in list(tensors) if name in head}
    if _INDICES in tensors:
        new |= _filled(arrays, sorted(tuned), tensors, folder)
    else:
        new |= _unstacked(tensors, content["layers"], folder)
    shapes = {name: tuple(arrays[name].shape) for name in sorted(head | set(tuned))}
    models.check_coverage(shapes, new, f"the adapter in {folder} does not fit")
    return models.from_arrays(model.config, model.shapes, arrays | new)


def fingerprint(model: models.Model) -> str:
    """SHA-256 (32 hexadecimal digits) of all parameters that adapters and head leave alone.

    The same for a base model with adapters on it, before and after their tuning. Matrices
    whose low ranks have an offset start are left out, since that changes them; files have two
    numbers of each instead.
    """
    arrays, tuned = models.to_arrays(model), models.adapter_arrays(model)
    moved = set(map(models.dense_name, _offsets(model.config)))
    skipped = {*tuned, *moved, *_head_names(model.config, arrays)}
    digest = hashlib.sha256()
    for name in sorted(set(arrays) - skipped):
        array = np.ascontiguousarray(arrays[name], np.float32)
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:32]


def _check_base(
    base: models.Model, model: models.Model, content: Mapping, folder: pathlib.Path
) -> None:
    """Raises ValueError where the adapter was tuned on another base than that of `model`."""
    found, wanted = fingerprint(model), content.get("offset_bases", [])
    arrays = models.to_arrays(base)
    if found == content["base"] and len(wanted) == len(_offsets(model.config)):
        held = [_sketch(arrays[models.dense_name(path)]) for path in _offsets(model.config)]
        norms = np.array([norm for _, norm in wanted]).reshape(-1, 1)
        if np.all(np.abs(np.subtract(held, wanted).reshape(-1, 2)) <= 1e-5 * norms):
            return
    raise ValueError(
        f"the adapter in {folder} was tuned on another base model: the parameters that it does not "
        f"tune differ (their fingerprint is {found}, the adapter's {content['base']}). Load the "
        "model that it was made for."
    )


def _offset_bases(model: models.Model) -> list[tuple[float, float]]:
    """Sketches of the original matrices whose low ranks have an offset start.

    To rounding, with which the start was subtracted.
    """
    arrays, found = models.to_arrays(model), []
    sizes, scale = model.config.matrix_sizes(), model.config.adapter_scale
    for path, settings in _offsets(model.config).items():
        _, _, update = adapters_lib.offset_start(path, sizes[path], settings, scale)
        found.append(_sketch(arrays[models.dense_name(path)] + update))
    return found


def _offsets(config) -> dict[str, AdapterSettings]:
    """{matrix path: settings} of offset starts, sorted."""
    found = sorted(models.adapter_settings(config).items())
    return {path: settings for path, settings in found if settings.offset_seed is not None}


def _sketch(matrix: np.ndarray) -> tuple[float, float]:
    """(a projection, the norm) of a matrix, in nine digits."""
    matrix = np.asarray(matrix, np.float64)
    rows, columns = (np.cos(k + np.arange(size) ** 2) for k, size in enumerate(matrix.shape))
    # u^T W v with u_n = cos(n^2), v_n = cos(1 + n^2), besides the Frobenius norm.
    numbers = rows @ matrix @ columns, np.linalg.norm(matrix)
    return tuple(float(f"{number:.9g}") for number in numbers)


def _with_adapters(
    base: models.Model, content: Mapping, held: int, folder: pathlib.Path
) -> models.Model:
    """The base with fresh adapters of a file's settings; `held` elements are in its tensors."""
    if base.config.adapters:
        raise ValueError("the base model has adapters already; merge them, or load it anew.")
    settings = {name: content[name] for name in ("adapters", "adapter_scale")}
    config = dataclasses.replace(base.config, **settings)
    arrays = models.to_arrays(base)
    shapes = _adapter_shapes(config, base, held, folder)
    sizes, scale = config.matrix_sizes(), config.adapter_scale
    for path, settings in _offsets(config).items():
        down, up, update = adapters_lib.offset_start(path, sizes[path], settings, scale)
        key = models.dense_name(path)
        if key not in arrays:
            raise ValueError(f"the adapter in {folder} needs a dense {path}: merge the model.")
        arrays[key] = np.float32(arrays[key] - update)
        arrays |= {f"{path}/adapter/down": down, f"{path}/adapter/up": up}
    for name, shape in shapes.items():
        if name not in arrays:
            # After an unstructured search the entries that are not kept do nothing.
            arrays[name] = np.full(shape, float(name.endswith("/adapter/scale")), np.float32)
    made = models.from_arrays(config, base.shapes, arrays)
    breaks = models.scan_boundaries(made, models.adapter_arrays(made))
    config = dataclasses.replace(config, scan_boundaries=breaks)
    return models.from_arrays(config, base.shapes, arrays)


def _adapter_shapes(config, base: models.Model, held: int, folder) -> dict[str, tuple[int, ...]]:
    """Shapes of what is added to the base, before anything is allocated.

    Raises:
      ValueError: far more than the file and the base hold.
    """
    shapes = models.array_shapes(config, base.shapes)
    added = {name: shape for name, shape in shapes.items() if "/adapter/" in name}
    needed = sum(map(math.prod, added.values()))
    own = sum(models.count_parameters(base).values())
    # After an unstructured search the file is smaller than its adapters.
    if needed > 8 * (held + own) + 2**20:
        raise ValueError(
            f"the adapter in {folder} is damaged: its settings need {needed:,} parameters, its "
            f"tensors hold {held:,} and the base {own:,}."
        )
    return added


def _head_names(config, arrays: Mapping) -> list[str]:
    if getattr(config, "num_labels", None) is None:
        return []
    return sorted(name for name in arrays if name.startswith("head/"))


def _saved_settings(model: models.Model) -> list[list]:
    """[pattern, settings] pairs; what takes too long to match is written path by path."""
    pairs = [[pattern, _to_dict(settings)] for pattern, settings in model.config.adapters]
    if patterns.fault([pattern for pattern, _ in pairs]) is None:
        return pairs
    added = models.adapter_settings(model.config).items()
    tuned = models.adapter_arrays(model).items()
    return [[re.escape(path), _to_dict(settings)] for path, settings in added] + [
        [re.escape(name), {"kind": kind}] for name, kind in tuned if "/adapter/" not in name
    ]


def _to_dict(settings: AdapterSettings) -> dict[str, Any]:
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(AdapterSettings)
        if field.name == "kind" or getattr(settings, field.name) != field.default
    }


def _stacked(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays of one name and shape in several layers as one, and the layers of each of those."""
    groups: dict[tuple, list[str]] = {}
    for name, array in arrays.items():
        groups.setdefault((_LAYER.sub("layers/*/", name, count=1), array.shape), []).append(name)
    found, layers = {}, {}
    for (key, _), names in groups.items():
        if key == names[0]:
            found[key] = arrays[key]
            continue
        # A second shape under the same name; the part from "#" on is dropped on reading.
        key = key if key not in found else f"{key}#{len(found)}"  # another shape
        found[key] = np.stack([arrays[name] for name in names])
        layers[key] = [int(_LAYER.search(name)[1]) for name in names]
    return found, layers


def _unstacked(tensors: Mapping[str, np.ndarray], layers: Mapping, folder) -> dict[str, np.ndarray]:
    found = {}
    for key, tensor in tensors.items():
        numbers, name = layers.get(key), key.partition("#")[0]
        if numbers is None:
            found[key] = tensor
        elif tensor.shape[:1] == (len(numbers),):
            names = [name.replace("layers/*/", f"layers/{number}/") for number in numbers]
            found |= dict(zip(names, tensor, strict=True))
        else:
            raise ValueError(
                f"the adapter in {folder} is damaged: {key} has the shape {tensor.shape}, its "
                f"settings name {len(numbers)} layers."
            )
    return found


def _entries(arrays: Mapping[str, np.ndarray], mask: Mapping) -> dict[str, np.ndarray]:
    shapes, given = ({n: np.shape(a) for n, a in each.items()} for each in (arrays, mask))
    if wrong := sorted(n for n in {*shapes, *given} if shapes.get(n) != given.get(n)):
        raise ValueError(
            f"mask must have an array for each of the adapters', of its shape; see {wrong[0]}."
        )
    names = sorted(arrays)
    flat = np.concatenate([arrays[name].ravel() for name in names])
    kept = np.concatenate([np.ravel(np.asarray(mask[name], bool)) for name in names])
    indices = np.flatnonzero(kept)
    return {_INDICES: indices.astype(np.int32), _VALUES: flat[indices]}


def _filled(arrays: Mapping, names, tensors: dict, folder) -> dict[str, np.ndarray]:
    indices, values = tensors.pop(_INDICES), tensors.pop(_VALUES, np.zeros(0, np.float32))
    flat = np.concatenate([np.ravel(arrays[name]) for name in names]).astype(np.float32)
    lists = indices.ndim == 1 and indices.shape == values.shape
    numbers = np.issubdtype(indices.dtype, np.integer) and is_floating(values)
    inside = indices.size == 0 or (indices.min() >= 0 and indices.max() < flat.size)
    if tensors or not lists or not numbers or not inside:
        raise ValueError(f"the adapter in {folder} is damaged: its entries do not fit the model.")
    # What the file does not name stays as the base and the start of the adapters have it.
    flat[indices] = values
    ends = np.cumsum([math.prod(arrays[name].shape) for name in names])
    parts = np.split(flat, ends[:-1])
    return {n: part.reshape(arrays[n].shape) for n, part in zip(names, parts, strict=True)}


def _read_settings(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"no adapter in {folder}: it has no {SETTINGS}.")
    content = checks.read_json(path)
    if "format_version" not in content:
        raise ValueError(f"{path} is no description of an adapter: it has no format_version.")
    has_offsets = "offset_seed" in path.read_text(encoding="utf-8")
    known = (FORMAT_VERSION,) if has_offsets else (1, FORMAT_VERSION)
    weights.check_version(content["format_version"], known, str(path))
    checks.check(content, _FIELDS, str(path), required=_REQUIRED)
    if fault := patterns.fault([pattern for pattern, _ in content["adapters"]]):
        raise ValueError(f"{path}: adapters: a pattern {fault}.")
    content["adapters"] = tuple(
        (p, checks.from_mapping(AdapterSettings, s, f"{path}: adapters {checks.shortened(p)}"))
        for p, s in content["adapters"]
    )
    return content
