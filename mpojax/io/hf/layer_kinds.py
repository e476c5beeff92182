"""Rotary positions and attention windows in config.json of decoders, old and new ways of saying it.

Files before transformers 5 keep base and scaling of rotary positions apart (`rope_theta`,
`rope_scaling`), newer ones together (`rope_parameters`); both are read, and both are written.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from mpojax import checks, models
from mpojax.checks import anything, flag, integer, mapping, null, number, one_of, sequence, text
from mpojax.io.hf.family import Joint, Key, extra
from mpojax.nn import RopeScaling

FULL, SLIDING = "full_attention", "sliding_attention"
_LENGTH, _FIRST = "max_position_embeddings", "original_max_position_embeddings"
_SCALING = {field.name: field.default for field in dataclasses.fields(RopeScaling)}
_ROPE_FIELDS = {
    **dict.fromkeys(("rope_theta", "partial_rotary_factor"), number() | null()),
    **dict.fromkeys(("mscale", "mscale_all_dim", "factor", _FIRST), number() | null()),
    **dict.fromkeys(("rope_type", "type"), text(100)),
}
# Older names of kinds of scaling, of Phi-3.
_OLD_TYPES = {"su": "longrope"}


def rope_keys(base: str = "rope_theta", fraction: str = "partial_rotary_factor") -> list[Key]:
    """The keys that `rope` reads; the two names are those of older files."""
    return [
        *(
            extra(name, mapping(anything()) | null())
            for name in ("rope_scaling", "rope_parameters")
        ),
        *(extra(name, number() | null()) for name in (base, fraction)),
        extra(_FIRST, integer(1) | null()),
    ]


def rope(
    base: float = 10_000.0,
    fraction: float | None = None,
    old: tuple[str, str] = ("rope_theta", "partial_rotary_factor"),
    types: Sequence[str] | None = None,
) -> Joint:
    """Base, scaling and part of rotary positions.

    Args:
      base: where a file has none.
      fraction: of a head's entries that are rotated, where a file has none; None: always all.
      old: names of both in older files.
      types: of scaling that transformers computes in these models; None: all.
    """

    def read(values: Mapping) -> dict:
        found = values["rope_scaling"] or values["rope_parameters"] or {}
        checks.check(found, _ROPE_FIELDS, "rotary positions")
        given = {new: values[name] for new, name in zip(_BASE_AND_PART, old, strict=True)}
        theta, part = (found.get(name, given[name]) for name in _BASE_AND_PART)
        if fraction is None and part not in (None, 1.0):
            raise ValueError(f"partial_rotary_factor={part!r} (supported: 1.0)")
        scaling = scaling_of(found, values)
        if types and scaling is not None and scaling.rope_type not in types:
            raise ValueError(
                f"rope_type={scaling.rope_type!r} of rotary positions (supported: default, "
                f"{', '.join(types)})"
            )
        read = {
            "rotary_base": base if theta is None else theta,
            "rotary_fraction": (fraction or 1.0) if part is None else part,
            "rotary_scaling": scaling,
        }
        if scaling is not None and scaling.rope_type == "dynamic":
            # The file has the first length; texts beyond it are what the scaling is for.
            read["max_positions"] = int(scaling.factor * values[_LENGTH])
        return read

    def write(config: models.DecoderConfig, content: Mapping) -> dict:
        theta, part = config.rotary_base, config.rotary_fraction
        more = {} if fraction is None else {"partial_rotary_factor": part}
        written = {old[0]: theta} | ({} if fraction is None else {old[1]: part})
        written |= _written(config, {"rope_theta": theta, **more}, content)
        if types and config.rotary_scaling is not None:  # Phi-3's own default comes first
            written[_FIRST] = config.rotary_scaling.original_max_position_embeddings
        return written

    fields = ("rotary_base", "rotary_scaling", *["rotary_fraction"] * (fraction is not None))
    return Joint(fields, read, write)


_BASE_AND_PART = ("rope_theta", "partial_rotary_factor")


def _written(config: models.DecoderConfig, plain: Mapping, content: Mapping) -> dict:
    """The keys of the scaling, and its neighbours that it decides."""
    entries = entries_of(config)
    keys = {
        "rope_scaling": entries,
        "rope_parameters": {**plain, **(entries or {"rope_type": "default"})},
    }
    scaling = config.rotary_scaling
    if scaling is None:
        return keys
    if scaling.rope_type == "dynamic":
        keys[_LENGTH] = scaling.original_max_position_embeddings
    elif _FIRST in content:
        keys[_FIRST] = scaling.original_max_position_embeddings
    return keys


def scaling_of(found: Mapping, values: Mapping) -> RopeScaling | None:
    """The scaling that the entries of rotary positions `found` say.

    Raises:
      ValueError: an unknown kind, or entries that it lacks.
    """
    kind = found.get("rope_type", found.get("type", "default"))
    kind = _OLD_TYPES.get(kind, kind)
    if kind == "default":
        return None
    given = {name: found[name] for name in _SCALING if found.get(name) is not None}
    first = values.get(_FIRST) or found.get(_FIRST) or values[_LENGTH]
    if kind == "dynamic":
        first = values[_LENGTH]
    elif kind in ("yarn", "longrope"):
        # Files that leave it out mean the ratio of the extended to the first length.
        given.setdefault("factor", values[_LENGTH] / first)
    if kind == "yarn" and found.get("mscale") and found.get("mscale_all_dim"):
        given.setdefault("attention_factor", _ratio(given["factor"], found))
    if kind != "linear":
        given[_FIRST] = first
    return checks.from_mapping(RopeScaling, {**given, "rope_type": kind}, "rotary positions")


def _ratio(factor: float, found: Mapping) -> float:
    """Amplitude of DeepSeek's yarn, whose two parts have weights."""
    # (1 + 0.1 m ln s) / (1 + 0.1 m' ln s), of the factor s and the weights m, m'.
    grown = 0.1 * math.log(max(factor, 1.0))
    return (1.0 + found["mscale"] * grown) / (1.0 + found["mscale_all_dim"] * grown)


def entries_of(config: models.DecoderConfig) -> dict | None:
    """The inverse of `scaling_of`, of a config's scaling."""
    scaling = config.rotary_scaling
    if scaling is None:
        return None
    entries = {n: getattr(scaling, n) for n, d in _SCALING.items() if getattr(scaling, n) != d}
    first = scaling.original_max_position_embeddings
    if scaling.rope_type == "dynamic":
        del entries[_FIRST]
    if scaling.rope_type == "longrope" and scaling.factor == config.max_positions / first:
        del entries["factor"]
    return {n: list(v) if isinstance(v, tuple) else v for n, v in entries.items()}


def window_keys(default: int | None, is_switched: bool = False) -> list[Key]:
    """The keys that `windows` reads; `is_switched`: one says whether there is a window at all."""
    return [
        extra("sliding_window", integer(0) | null(), default),
        extra("layer_types", sequence(one_of(FULL, SLIDING)) | null()),
        *[extra("use_sliding_window", flag(), False)] * is_switched,
    ]


def windows(slides: Callable[[int, Mapping], bool], is_switched: bool = False) -> Joint:
    """The window of attention, and the layers without it.

    Args:
      slides: whether a layer has a window in files that do not say it for each.
      is_switched: see `window_keys`.
    """

    def read(values: Mapping) -> dict:
        layers = range(values["num_hidden_layers"])
        types = values["layer_types"] or [
            SLIDING if slides(layer, values) else FULL for layer in layers
        ]
        if len(types) != len(layers):
            raise ValueError(f"layer_types has {len(types)} entries for {len(layers)} layers")
        full = tuple(layer for layer in layers if types[layer] == FULL)
        window = values["sliding_window"] if values.get("use_sliding_window", True) else None
        if window is None or len(full) == len(layers):
            return {"sliding_window": None, "full_attention_layers": ()}
        return {"sliding_window": window, "full_attention_layers": full}

    def write(config: models.DecoderConfig, content: Mapping) -> dict:
        written = {"layer_types": layer_types(config)}
        if is_switched:
            written["use_sliding_window"] = config.sliding_window is not None
        if config.sliding_window is not None:
            written["sliding_window"] = config.sliding_window
        return written

    return Joint(("sliding_window", "full_attention_layers"), read, write)


def layer_types(config: models.DecoderConfig) -> Sequence[str]:
    """The kind of each layer's attention, in the words of config.json."""
    return [SLIDING if kind.window is not None else FULL for kind in config.layer_kinds]
