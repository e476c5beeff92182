"""adapter_config.json of peft: what of it is a plain LoRA, and which module has which numbers.

Known are the settings of peft 0.1 to 0.21. What changes the function of an adapter and has no
counterpart here is refused by name, and so is what is not known and not empty.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from mpojax import checks, patterns

CONFIG = "adapter_config.json"
_MAX_RANK = 2**24
_NAMES = checks.sequence(checks.text(1000)) | checks.null()
_EMPTY = (None, False, "", [], {})
_NONE = checks.Allowed("null, false or empty", lambda value: value in _EMPTY)
_FIELDS = {
    "peft_type": checks.one_of("LORA"),
    "r": checks.integer(1, _MAX_RANK),
    "lora_alpha": checks.number(),
    "use_rslora": checks.flag() | checks.null(),
    "target_modules": checks.text() | _NAMES,
    "exclude_modules": checks.text() | _NAMES,
    "modules_to_save": _NAMES,
    "layers_to_transform": checks.integer(0) | checks.sequence(checks.integer(0)) | checks.null(),
    "layers_pattern": checks.text(1000) | _NAMES,
    "rank_pattern": checks.mapping(checks.integer(1, _MAX_RANK)) | checks.null(),
    "alpha_pattern": checks.mapping(checks.number()) | checks.null(),
    "bias": checks.one_of("none") | _NONE,
    # What these turn on computes something else than a plain LoRA.
    **dict.fromkeys(
        (
            *("alora_invocation_tokens", "arrow_config", "enable_lora", "kasa_config"),
            *("layer_replication", "lora_bias", "megatron_config", "monteclora_config"),
            *("target_parameters", "trainable_token_indices", "use_bdlora", "use_dora"),
            "use_qalora",
        ),
        _NONE,
    ),
}
_REQUIRED = ("peft_type", "r", "lora_alpha")
# About provenance, training, how a start was computed, or how a weight is stored by peft.
_WITHOUT_EFFECT = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
    *("task_type", "lora_dropout", "velora_config", "ensure_weight_tying", "runtime_config"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "qalora_group_size"),
    *("fan_in_fan_out", "megatron_core", "merge_weights"),
)
# Starts that leave the base as it is; others (pissa, olora, corda, loftq, lora_ga) change it.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_PATTERNED = ("rank_pattern", "alpha_pattern", "layers_pattern")


@dataclasses.dataclass(frozen=True)
class Lora:
    """The settings of a plain LoRA, as peft reads them.

    Attributes:
      content: of adapter_config.json.
      ranks, alphas: (expression for a whole module name, value), of what differs from the default.
      layers: expressions for the start of a module name up to the number of its layer.
    """

    content: Mapping[str, Any]
    ranks: list[tuple[re.Pattern, int]]
    alphas: list[tuple[re.Pattern, float]]
    layers: list[re.Pattern]

    def rank(self, module: str) -> int:
        """Rank of the update of a module."""
        return _patterned(self.ranks, module, self.content["r"])

    def scale(self, module: str) -> float:
        """Factor of the update: alpha / r, or alpha / sqrt(r)."""
        alpha = _patterned(self.alphas, module, self.content["lora_alpha"])
        # rsLoRA (Kalajdzievski, 2023) divides by the root of the rank.
        return float(alpha / self.rank(module) ** (0.5 if self.content.get("use_rslora") else 1))

    def is_targeted(self, module: str) -> bool:
        """Tells if peft adds an update to a module.

        Of lists of names; where a regular expression chooses modules, the tensors say which.
        """
        targets, excluded = self.content.get("target_modules"), self.content.get("exclude_modules")
        if isinstance(excluded, list) and _ends_with(module, excluded):
            return False
        if not isinstance(targets, list):
            return True
        layers = self.content.get("layers_to_transform")
        if not _ends_with(module, targets) or layers in (None, []):
            return _ends_with(module, targets)
        return self._layer(module) in (layers if isinstance(layers, list) else [layers])

    def _layer(self, module: str) -> int | None:
        found = (expression.match(module) for expression in self.layers)
        match = next(filter(None, found), None)
        return match and int(match["layer"])


def read(folder: pathlib.Path) -> Lora:
    """The settings in a folder of peft.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another method, settings that are not known or not supported, or of a wrong type;
        all are named.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no adapter of peft in {folder}: it has no {CONFIG}.")
    content = checks.read_json(path)
    found = [f"{name} is missing" for name in _REQUIRED if name not in content]
    found += checks.problems(content, _FIELDS) + _unsupported(content)
    expressions = {} if found else {name: _expressions(content, name) for name in _PATTERNED}
    faults = {name: patterns.fault(each) for name, each in expressions.items()}
    found += [f"{name} {fault} (name the modules)" for name, fault in faults.items() if fault]
    what = f"{path} has settings that are not supported (supported: plain LoRA)"
    checks.check_none(found, what)
    compiled = {name: list(map(re.compile, each)) for name, each in expressions.items()}
    values = {name: (content.get(name) or {}).values() for name in _PATTERNED[:2]}
    ranks, alphas = (list(zip(compiled[n], v, strict=True)) for n, v in values.items())
    return Lora(content, ranks, alphas, compiled["layers_pattern"])


def known() -> tuple[str, ...]:
    """Names of settings whose meaning is known, supported or not."""
    return ("init_lora_weights", *_FIELDS, *_WITHOUT_EFFECT)


def _unsupported(content: Mapping[str, Any]) -> list[str]:
    shown = {name: checks.shortened(value) for name, value in content.items()}
    found = [
        f"{name}={shown[name]}, which is not known{checks.did_you_mean(name, known())}"
        for name, value in content.items()
        if name not in known() and value not in _EMPTY
    ]
    if content.get("init_lora_weights") not in _STARTS:
        found.append(f"init_lora_weights={shown['init_lora_weights']}, whose base is not the one")
    return found


def _expressions(content: Mapping[str, Any], name: str) -> list[str]:
    """What peft makes of the patterns in a field."""
    found = content.get(name) or []
    if name != "layers_pattern":  # keys are for the end of a name
        return [rf"(.*\.)?({pattern})$" for pattern in found]
    found = [found] if isinstance(found, str) else found
    # Without one, the first number behind any two parts of a name.
    named = [rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\." for pattern in found if pattern]
    return named or [r".*?\.[^.]*\.(?P<layer>\d+)\."]


def _patterned(values: list[tuple[re.Pattern, Any]], module: str, default):
    return next((value for pattern, value in values if pattern.match(module)), default)


def _ends_with(module: str, names: list[str]) -> bool:
    parts = module.split(".")
    # Whole parts: "proj" does not end "q_proj".
    return not {".".join(parts[k:]) for k in range(len(parts))}.isdisjoint(names)
