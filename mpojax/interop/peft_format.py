"""Low-rank adapters in the folder format of the package peft: adapter_config.json and safetensors.

Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from mpojax import files, models
from mpojax.interop import (
    checkpoint_config,
    huggingface,
    language_models,
    language_settings,
    safe_weights,
)
from mpojax.layers import AdapterSettings

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Starts of peft that leave the base as it is; others (pissa, olora, corda, loftq) change it.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
# Settings of peft that change what an adapter computes; anything else than this is refused.
_PLAIN = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "layers_to_transform": None,
    "trainable_token_indices": None,
    "target_parameters": None,
}


def save_peft(
    model: models.Model, folder: str | os.PathLike, *, base_model: str | None = None
) -> None:
    """Writes the low-rank adapters of a model as peft loads them.

    Heads and other parameters are not written. `peft.PeftModel.from_pretrained(base, folder)`, with
    the base that `interop.export_huggingface` writes, computes what the model does.

    Args:
      model: whose adapters are all low rank.
      folder: made where it does not exist.
      base_model: named in the configuration.

    Raises:
      ValueError: other adapters; a matrix that transformers stores together with others (the
        queries, keys and values of GPT-2); a model without counterpart there.
    """
    settings = models.adapter_settings(model.config)
    other = [str(s) for _, s in model.config.adapters if not _is_plain(s)]
    if not settings or other:
        raise ValueError(
            f"peft's format holds plain low-rank adapters; the model has {other or 'none at all'}. "
            "interop.save_adapter keeps every kind."
        )
    modules, arrays = _modules(model), models.to_arrays(model)
    tensors, ranks, alphas = {}, {}, {}
    for path, chosen in settings.items():
        if path not in modules:
            raise ValueError(
                f"{path} is a part of a larger matrix in transformers: an adapter of its own has "
                "no counterpart. Merge it, or use interop.save_adapter."
            )
        scale = model.config.adapter_scale if chosen.scale is None else chosen.scale
        name = modules[path]
        ranks[name], alphas[name] = chosen.rank, scale * chosen.rank
        for leaf, theirs in (("down", "lora_A"), ("up", "lora_B")):
            array = np.asarray(arrays[f"{path}/adapter/{leaf}"], np.float32)
            tensors[f"{_PREFIX}{name}.{theirs}.weight"] = np.ascontiguousarray(array.T)
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
    folder = pathlib.Path(folder)
    files.write_atomic(folder / WEIGHTS, safetensors_numpy.save(tensors))
    files.write_atomic(folder / CONFIG, json.dumps(content, indent=1) + "\n")


def _is_plain(settings: AdapterSettings) -> bool:
    # An offset start is a part of the base, too, which peft would not have.
    return settings.kind == "low_rank" and settings.offset_seed is None


def load_peft(base: models.Model, folder: str | os.PathLike) -> models.Model:
    """The base model with the adapters of a folder of peft; `base` stays as it is.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: another method than LoRA or settings that are not supported; tensors that are
        missing, unknown or misshapen.
    """
    folder = pathlib.Path(folder)
    content = _read_config(folder)
    tensors = safe_weights.read_weights(folder / WEIGHTS)
    safe_weights.check_finite(tensors, str(folder / WEIGHTS))
    if base.config.adapters:
        raise ValueError("the base model has adapters already; merge them, or load it anew.")
    paths = {name: path for path, name in _modules(base).items()}
    # Adapters may have been made on the model without its head, or with another one.
    short = {
        re.sub(r"^(bert|albert|distilbert|mobilebert|transformer|model)\.", "", n): p
        for n, p in paths.items()
    }
    found: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for name, tensor in tensors.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        module = match and match[1]
        bare = module and re.sub(
            r"^(bert|albert|distilbert|mobilebert|transformer|model)\.", "", module
        )
        path = paths.get(module) or short.get(bare)
        if path is None:
            unknown.append(name)
        else:
            found.setdefault(path, {"name": module})["down" if match[2] == "A" else "up"] = tensor.T
    if unknown:
        raise ValueError(f"{folder} has tensors that do not fit the model: {', '.join(unknown)}.")
    return _adapted(base, content, found, folder)


def _adapted(base, content: Mapping, found: Mapping, folder) -> models.Model:
    sizes, adapters, arrays = models.matrix_sizes(base.config), [], models.to_arrays(base)
    if not found:
        raise ValueError(f"{folder} holds no adapter.")
    for path, parts in found.items():
        if not {"down", "up"} <= set(parts):
            raise ValueError(f"{folder} lacks one of the two factors of {parts['name']}.")
        rank = parts["down"].shape[1]
        expected = (sizes[path][0], rank), (rank, sizes[path][1])
        if (parts["down"].shape, parts["up"].shape) != expected:
            raise ValueError(
                f"{folder}: the factors of {parts['name']} are {parts['down'].shape} and "
                f"{parts['up'].shape}; they must be {expected[0]} and {expected[1]}."
            )
        alpha = _patterned(content.get("alpha_pattern"), parts["name"], content["lora_alpha"])
        root = rank**0.5 if content.get("use_rslora") else rank
        settings = AdapterSettings(rank=rank, scale=float(alpha / root))
        adapters.append((re.escape(path), settings))
        for leaf in ("down", "up"):
            arrays[f"{path}/adapter/{leaf}"] = np.ascontiguousarray(parts[leaf], np.float32)
    config = dataclasses.replace(base.config, adapters=tuple(adapters))
    return models.from_arrays(config, base.shapes, arrays)


def _patterned(patterns: Mapping[str, Any] | None, name: str, default):
    """peft's rule: keys are regular expressions for the end of a module's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _modules(model: models.Model) -> dict[str, str]:
    """{matrix path: name of its module in transformers}, of matrices stored by themselves."""
    config = dataclasses.replace(model.config, adapters=())
    expected = models.array_shapes(config)
    if isinstance(config, models.EncoderConfig):
        architecture = checkpoint_config.architecture_for(config)
        kind = checkpoint_config.kind_of(config)
        prefix = "" if kind == "none" else architecture.prefix
        table = huggingface.name_table(architecture, config, expected)
        pairs = [(prefix + name, (path,)) for name, (path, _) in table.items()]
    else:
        architecture = language_settings.architecture_for(config)
        table = language_models.name_table(architecture.rows[config.gated], config, expected)
        pairs = [(architecture.prefix + name, paths) for name, (paths, _) in table.items()]
    names = {models.dense_name(path): path for path in models.adaptable(config)}
    return {
        names[paths[0]]: name.removesuffix(".weight")
        for name, paths in pairs
        if len(paths) == 1 and paths[0] in names
    }


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no adapter of peft in {folder}: it has no {CONFIG}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind, _, _ = content["peft_type"], content["r"], content["lora_alpha"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no configuration of a LoRA: {error}.") from error
    problems = [
        f"{n}={content[n]!r}" for n, v in _PLAIN.items() if content.get(n, v) not in (v, [])
    ]
    if (start := content.get("init_lora_weights", True)) not in _STARTS:
        problems.append(f"init_lora_weights={start!r}, whose base is not the original,")
    if kind != "LORA" or problems:
        raise ValueError(
            f"{path} has settings that are not supported: peft_type={kind!r} "
            f"{' '.join(problems)} (supported: plain LORA)."
        )
    return content
