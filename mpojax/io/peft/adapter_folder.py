"""Low-rank adapters in the folder format of the package peft: adapter_config.json and safetensors.

Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping

import numpy as np
from flax import nnx
from safetensors import numpy as safetensors_numpy

from mpojax import checks, files, models
from mpojax.io.hf.checkpoints import FAMILIES, family_for
from mpojax.io.hf.names import Tensor
from mpojax.io.peft import adapter_config as peft_config
from mpojax.io.weights import read_weights
from mpojax.models.arrays import check_finite, is_floating
from mpojax.nn import AdapterSettings

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_HEADS = {"classifier.weight": "classifier", "qa_outputs.weight": "span"}


def save_peft(
    model: models.Model, folder: str | os.PathLike, *, base_model: str | None = None
) -> None:
    """Writes the low-rank adapters of a model as peft loads them.

    Heads and other parameters are not written. `peft.PeftModel.from_pretrained(base, folder)`, with
    the base that `io.export_huggingface` writes, computes what the model does.

    Args:
      model: whose adapters are all low rank.
      folder: made where it does not exist.
      base_model: named in the configuration.

    Raises:
      ValueError: other adapters; on matrices that transformers stores as one, such as queries,
        keys and values of GPT-2, adapters that do not share their `down`; a model without
        counterpart there.
    """
    settings = models.adapter_settings(model.config)
    other = [str(s) for _, s in model.config.adapters if not _is_plain(s)]
    if not settings or other:
        raise ValueError(
            f"peft's format holds plain low-rank adapters; the model has {other or 'none at all'}. "
            "io.save_adapter keeps every kind."
        )
    arrays = models.to_arrays(model)
    tensors, ranks, alphas = {}, {}, {}
    wanted = _tensors_of(model.config)
    for weight, paths in _modules(wanted, model.config).items():
        if settings.keys().isdisjoint(paths):
            continue
        name = weight.removesuffix(".weight")
        down, ups, scale = _factors(paths, settings, arrays, model.config.adapter_scale)
        up = wanted[weight].whole(ups, model.config)
        # peft scales by alpha / r, so alpha = scale * r.
        ranks[name], alphas[name] = down.shape[1], scale * down.shape[1]
        for factor, array in (("A", down), ("B", up)):
            # torch's (out, in): lora_A is (r, in), lora_B (out, r).
            tensors[f"{_PREFIX}{name}.lora_{factor}.weight"] = np.ascontiguousarray(array.T)
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    content = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(ranks),
        "rank_pattern": {n: r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {n: a for n, a in alphas.items() if a != alpha},
        "fan_in_fan_out": False,
        "bias": "none",
    }
    folder = files.at(folder)
    files.write_atomic(folder / WEIGHTS, safetensors_numpy.save(tensors))
    files.write_atomic(folder / peft_config.CONFIG, json.dumps(content, indent=1) + "\n")


def _is_plain(settings: AdapterSettings) -> bool:
    # An offset start is a part of the base, too, which peft would not have.
    return settings.kind == "low_rank" and settings.offset_seed is None


def _factors(
    paths: tuple[str, ...], settings: Mapping, arrays: Mapping, scale: float
) -> tuple[np.ndarray, list[np.ndarray], float]:
    """(down, up of each, scale) of matrices that transformers stores side by side in one.

    Raises:
      ValueError: a part without an update, or with another `down` or scale than the others.
    """
    adapted = [path for path in paths if path in settings]
    scales = {scale if s.scale is None else s.scale for s in map(settings.get, adapted)}
    downs, ups = (
        [np.asarray(arrays[f"{path}/adapter/{n}"], np.float32) for path in adapted]
        for n in ("down", "up")
    )
    is_shared = len(scales) == 1 and all(np.array_equal(down, downs[0]) for down in downs)
    if len(adapted) < len(paths) or not is_shared:
        raise ValueError(
            f"{adapted[0]} is a part of a larger matrix in transformers, with {', '.join(paths)}: "
            "an adapter there has one down map and scale for all of them. Merge the adapters, or "
            "use io.save_adapter."
        )
    return downs[0], ups, scales.pop()


def load_peft(base: models.Model, folder: str | os.PathLike) -> models.Model:
    """The base model with the adapters of a folder of peft; `base` stays as it is.

    Whole modules that peft has tuned and saved (`modules_to_save`) take the place of those of the
    base; an encoder without a head gets the one in the folder. The update of a joint matrix, such
    as that of queries, keys and values of GPT-2, becomes several with the same `down`.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: another method than LoRA or settings that are not known or not supported; tensors
        that are missing, unexpected, of another shape, or not what the settings say.
    """
    folder = files.local(folder)
    lora = peft_config.read(folder)
    if base.config.adapters:
        raise ValueError("the base model has adapters already; merge them, or load it anew.")
    tensors = read_weights(folder / WEIGHTS)
    check_finite(tensors, str(folder / WEIGHTS))
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    base = _with_saved_head(base, tensors, folder)
    wanted = _tensors_of(base.config)
    modules = _modules(wanted, base.config)
    factors, saved = _sorted(tensors, wanted, modules, folder)
    arrays = models.to_arrays(base) | _saved_arrays(base, wanted, saved, folder)
    sizes, adapters = base.config.matrix_sizes(), []
    for name, named in factors.items():
        paths, module = modules[name], named["name"]
        widths = [sizes[path][1] for path in paths]
        down, up = _checked_factors(named, lora, sizes[paths[0]][0], sum(widths), folder)
        settings = AdapterSettings(rank=down.shape[1], scale=lora.scale(module))
        ups = wanted[name].parts(up, widths, base.config)
        for path, part in zip(paths, ups, strict=True):
            adapters.append((re.escape(path), settings))
            arrays |= {f"{path}/adapter/down": down, f"{path}/adapter/up": part}
    config = dataclasses.replace(base.config, adapters=tuple(adapters))
    return models.from_arrays(config, base.shapes, arrays)


def _with_saved_head(base: models.Model, tensors: Mapping, folder) -> models.Model:
    """The base with a head for the one in the folder, where it has none."""
    name = next((name for name in _HEADS if name in tensors and tensors[name].ndim == 2), None)
    if name is None or base.config.generates or base.config.num_labels is not None:
        return base
    if _HEADS[name] == "classifier" and base.config.pooling == "none":
        raise ValueError(
            f"{folder} has a classifier, but the base has no pooler to put it on: load the "
            "sequence classifier that the adapter was tuned with."
        )
    # torch's (labels, hidden).
    return models.with_head(base, len(tensors[name]), head=_HEADS[name], rngs=nnx.Rngs(0))


def _sorted(tensors: Mapping, wanted: Mapping, modules: Mapping, folder) -> tuple[dict, dict]:
    """({weight: {"A": ..., "B": ..., "name": of the module in the folder}}, {tensor: as saved}).

    Raises:
      ValueError: tensors that the model does not have, under two names or of another type; none.
    """
    prefixes = "|".join(re.escape(family.prefix) for family in FAMILIES.values() if family.prefix)
    # Adapters may have been made on the model without its head, or with another one.
    bare = {re.sub(f"^({prefixes})", "", name): name for name in wanted}
    found, saved, wrong = {}, {}, []
    for name, tensor in tensors.items():
        factor = _FACTOR.fullmatch(name)
        weight = f"{factor[1]}.weight" if factor else name
        weight = weight if weight in wanted else bare.get(re.sub(f"^({prefixes})", "", weight))
        entries = found.setdefault(weight, {"name": factor[1]}) if factor else saved
        part = factor[2] if factor else weight
        fits = weight is not None and (not factor or weight in modules)
        if not fits or part in entries or not is_floating(tensor):
            wrong.append(name)
        entries[part] = tensor
    what = "tensors that do not fit the model, are there twice or are not floating point"
    checks.check_none(wrong, f"{folder} has {what}")
    if not found:
        raise ValueError(f"{folder} holds no adapter.")
    return found, saved


def _saved_arrays(base: models.Model, wanted, saved: Mapping, folder) -> dict[str, np.ndarray]:
    """{logical path: array} of the tensors that replace those of the base."""
    arrays, new, problems = models.to_arrays(base), {}, []
    is_tied = getattr(base.config, "tied", getattr(base.config, "masked_lm", False))
    for name, tensor in saved.items():
        entry = wanted[name]
        shapes = {path: arrays[path].shape for path in entry.paths if path in arrays}
        if len(shapes) < len(entry.paths):
            problems.append(f"{name}: the base has it in MPO form")
        elif is_tied and entry.paths == ("embeddings/word/table",):
            problems.append(f"{name}: the base has one matrix for tokens and outputs, peft two")
        elif tensor.shape != (shape := entry.shape(shapes)):
            order = -1 if entry.transpose else 1
            problems.append(f"{name} is {tensor.shape[::order]}, must be {shape[::order]}")
        else:
            new |= entry.split(tensor, shapes, base.config)
    checks.check_none(problems, f"{folder} has modules_to_save that do not fit the model")
    return new


def _checked_factors(named: Mapping, lora, width: int, out_width: int, folder):
    """(down, up), which are what the settings say.

    Raises:
      ValueError: a factor is missing, of another shape, or of a module that peft would skip.
    """
    name = named["name"]
    # (in, r) and (r, out)
    down, up = (named.get(factor, np.zeros(())).T for factor in "AB")
    expected = (width, lora.rank(name)), (lora.rank(name), out_width)
    if (down.shape, up.shape) != expected:
        raise ValueError(
            f"{folder}: the factors of {name} are {down.shape} and {up.shape}; by the model and "
            f"the rank in {peft_config.CONFIG} they must be {expected[0]} and {expected[1]}."
        )
    if not lora.is_targeted(name):
        raise ValueError(
            f"{folder} has an update of {name}, which target_modules, exclude_modules and "
            f"layers_to_transform in {peft_config.CONFIG} leave out: peft would not use it."
        )
    return down, up


def _modules(tensors: Mapping, config: models.Config) -> dict[str, tuple[str, ...]]:
    """{weight in transformers: matrix paths side by side in it}, of what may have an adapter."""
    matrices = {models.dense_name(path): path for path in config.adaptable()}
    return {
        name: tuple(matrices[path] for path in tensor.paths)
        for name, tensor in tensors.items()
        if all(path in matrices for path in tensor.paths)
    }


def _tensors_of(config: models.Config) -> dict[str, Tensor]:
    """The tensors of the base model in transformers, by name."""
    family, config = family_for(dataclasses.replace(config, adapters=()))
    return family.tensors_of(config, models.array_shapes(config))
