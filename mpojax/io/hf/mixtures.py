"""Decoders with experts in their feed-forward blocks: Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE."""

import dataclasses
from collections.abc import Callable, Mapping

from mpojax import models
from mpojax.checks import flag, integer, null, sequence
from mpojax.io.hf import llama
from mpojax.io.hf.family import Joint, extra, key, keys, only, token
from mpojax.io.hf.language_models import LanguageFamily, classes
from mpojax.io.hf.layer_kinds import rope, windows
from mpojax.io.hf.llama import LLAMA, QWEN2, QWEN3
from mpojax.io.hf.names import Marks, Module, linear
from mpojax.nn import ExpertSettings

_BLOCK = "layers/{m}/feed_forward"
_ROUTERS = {True: "topk_normalized", False: "topk"}
# What a model runs by, and no checkpoint says.
_EXECUTION = {"dispatch": "auto", "structure": "auto", "remat": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureFamily(LanguageFamily):
    """A model type whose layers have experts, all or some of them."""

    def marks(self, config: models.Config) -> Marks:
        """Layers: all (i), dense ones (d), those with experts (m); experts (e)."""
        layers = {"d": [], "m": []}
        for layer, experts in enumerate(_experts_of(config)):
            layers["d" if experts is None else "m"].append((layer, layer))
        numbers = {experts.number for experts in _experts_of(config) if experts is not None}
        experts = [(n, n) for n in range(max(numbers, default=0))]
        return super().marks(config) | layers | {"e": experts}


def _experts_of(config: models.DecoderConfig) -> list[ExpertSettings | None]:
    """Of each layer."""
    found = [
        config.experts_of(f"layers/{layer}/feed_forward") for layer in range(config.num_layers)
    ]
    return [each and dataclasses.replace(each, **_EXECUTION) for each in found]


def _layers(values: Mapping) -> list[int]:
    """Layers with experts."""
    step, dense = values.get("decoder_sparse_step", 1), values.get("mlp_only_layers") or ()
    layers = range(values["num_hidden_layers"])
    return [layer for layer in layers if (layer + 1) % step == 0 and layer not in dense]


def _read(values: Mapping) -> dict:
    """The experts, from values of the keys that are a family's."""
    layers = _layers(values)
    if not layers:
        raise ValueError(
            "no layer has experts, by decoder_sparse_step and mlp_only_layers (a model type "
            "without them, such as qwen2, computes it)"
        )
    is_all = len(layers) == values["num_hidden_layers"]
    some = r"\d+" if is_all else f"({'|'.join(map(str, layers))})"
    settings = {
        "number": values.get("num_experts") or values["num_local_experts"],
        "router": _ROUTERS[values.get("norm_topk_prob", True)],
        "k": values["num_experts_per_tok"],
        "router_bias": False,
        "intermediate_size": values.get("moe_intermediate_size"),
        "shared_size": values.get("shared_expert_intermediate_size"),
    }
    return {"experts": ((f"layers/{some}/feed_forward", ExpertSettings(**settings)),)}


def _written(config: models.DecoderConfig, content: Mapping) -> dict:
    """All keys that a family of mixtures may have."""
    experts = _experts_of(config)
    layers = [layer for layer, each in enumerate(experts) if each is not None]
    settings = experts[layers[0]]
    sizes = {
        "num_experts": settings.number,
        "num_local_experts": settings.number,
        "num_experts_per_tok": settings.k,
        "norm_topk_prob": settings.router == "topk_normalized",
        "moe_intermediate_size": settings.intermediate_size or config.intermediate_size,
        "shared_expert_intermediate_size": settings.shared_size,
    }
    # The source's step and list stay where they say the same layers; else a list alone says them.
    if _layers({**content, "num_hidden_layers": config.num_layers}) == layers:
        return sizes
    dense = [layer for layer in range(config.num_layers) if layer not in layers]
    return sizes | {"decoder_sparse_step": 1, "mlp_only_layers": dense}


def _experts(*names: str) -> Joint:
    """The experts, said by keys of these names."""

    def write(config: models.DecoderConfig, content: Mapping) -> dict:
        return {n: value for n, value in _written(config, content).items() if n in names}

    def read(values: Mapping) -> dict:
        return _read({n: values[n] for n in (*names, "num_hidden_layers")})

    return Joint(("experts",), read, write)


def _misfit(*names: str) -> tuple[str, Callable[[models.DecoderConfig], bool]]:
    """For experts that keys of these names do not say."""

    def is_one(config: models.DecoderConfig) -> bool:
        own = _experts_of(config)
        if not any(own) or any(each.router not in _ROUTERS.values() for each in own if each):
            return True
        said = {n: value for n, value in _written(config, {}).items() if n in names}
        # What does not come back from the keys that would be written has no counterpart.
        read = _read({**said, "num_hidden_layers": config.num_layers})["experts"]
        expected = _experts_of(dataclasses.replace(config, experts=read))
        return _with_widths(expected, config) != _with_widths(own, config)

    return ("experts={0.experts}", is_one)


def _with_widths(experts: list[ExpertSettings | None], config: models.DecoderConfig) -> list:
    """Experts that say their width."""
    width = config.intermediate_size
    return [
        each and dataclasses.replace(each, intermediate_size=each.intermediate_size or width)
        for each in experts
    ]


def _mixture(of: LanguageFamily, names: Mapping[str, str], tensors: Mapping, **more):
    """A family like another one, with experts of these names in a block `start`."""
    start = names["start"]
    dense = {n: m for n, m in of.tensors.items() if ".mlp." not in n}
    experts = {
        f"{start}.experts.{{e}}.{names[own]}": linear(f"{_BLOCK}/{own}")
        for own in ("gate", "up", "down")
    }
    router = {f"{start}.gate": linear(f"{_BLOCK}/router")}
    fields = {field.name: getattr(of, field.name) for field in dataclasses.fields(LanguageFamily)}
    return MixtureFamily(**{**fields, "tensors": {**dense, **experts, **router, **tensors}, **more})


_PROJECTIONS = {name: f"{name}_proj" for name in ("gate", "up", "down")}
_OF_QWEN = {"start": "layers.{m}.mlp", **_PROJECTIONS}
# Mixtral's expert is w2(silu(w1 x) * w3 x).
_OF_MIXTRAL = {
    "start": "layers.{m}.block_sparse_moe",
    "gate": "w1",
    "up": "w3",
    "down": "w2",
}
_DENSE: dict[str, Module] = {
    f"layers.{{d}}.mlp.{name}_proj": linear(f"layers/{{d}}/feed_forward/{name}")
    for name in ("gate", "up", "down")
}
_SHARED: dict[str, Module] = {
    **{
        f"layers.{{m}}.mlp.shared_expert.{name}_proj": linear(f"{_BLOCK}/shared_expert/{name}")
        for name in ("gate", "up", "down")
    },
    "layers.{m}.mlp.shared_expert_gate": linear(f"{_BLOCK}/shared_expert_gate"),
}
_SOME_LAYERS = keys(
    extra("decoder_sparse_step", integer(1), 1),
    extra("mlp_only_layers", sequence(integer(0)) | null()),
)
_NAMES = ("num_experts_per_tok", "norm_topk_prob")
_LAYER_NAMES = ("decoder_sparse_step", "mlp_only_layers")

_MIXTRAL_NAMES = ("num_local_experts", "num_experts_per_tok")
MIXTRAL = _mixture(
    llama.MISTRAL,
    _OF_MIXTRAL,
    {},
    model_type="mixtral",
    classes=classes("Mixtral"),
    keys={
        **llama.MISTRAL.keys,
        **keys(
            key("rms_norm_eps", "norm_eps", 1e-5),
            key("sliding_window", "sliding_window", None, integer(1) | null()),
            extra("num_local_experts", integer(1), 8),
            extra("num_experts_per_tok", integer(1), 2),
        ),
    },
    joints=(rope(1_000_000.0), _experts(*_MIXTRAL_NAMES)),
    misfits=(_misfit(*_MIXTRAL_NAMES),),
)
_QWEN2_NAMES = (
    *("num_experts", *_NAMES, *_LAYER_NAMES),
    *("moe_intermediate_size", "shared_expert_intermediate_size"),
)
QWEN2_MOE = _mixture(
    QWEN2,
    _OF_QWEN,
    {**_DENSE, **_SHARED},
    model_type="qwen2_moe",
    classes=classes("Qwen2Moe"),
    keys={
        **QWEN2.keys,
        **_SOME_LAYERS,
        **keys(
            key("num_key_value_heads", "num_kv_heads", 16, integer(1) | null()),
            key("qkv_bias", "attention_bias", True),
            extra("num_experts", integer(1), 60),
            extra("num_experts_per_tok", integer(1), 4),
            extra("norm_topk_prob", flag(), False),
            extra("moe_intermediate_size", integer(1), 1408),
            extra("shared_expert_intermediate_size", integer(1), 5632),
        ),
    },
    joints=(
        rope(),
        windows(lambda layer, v: layer % 2 == 0 and layer < v["max_window_layers"], True),
        _experts(*_QWEN2_NAMES),
    ),
    fixed={**LLAMA.fixed, "attention_out_bias": False, "feed_forward_bias": False},
    misfits=(
        _misfit(*_QWEN2_NAMES),
        (
            "no expert that all tokens go through (shared_size)",
            lambda config: not all(e.shared_size for e in _experts_of(config) if e),
        ),
    ),
)
_QWEN3_NAMES = (
    *("num_experts", "num_local_experts", *_NAMES, *_LAYER_NAMES),
    "moe_intermediate_size",
)
QWEN3_MOE = _mixture(
    QWEN3,
    _OF_QWEN,
    _DENSE,
    model_type="qwen3_moe",
    classes=classes("Qwen3Moe"),
    keys={
        **{n: entry for n, entry in QWEN3.keys.items() if n != "layer_types"},
        **_SOME_LAYERS,
        **keys(
            key("num_key_value_heads", "num_kv_heads", 4, integer(1) | null()),
            key("head_dim", "head_size", None, integer(1) | null()),
            extra("num_experts", integer(1) | null()),
            extra("num_local_experts", integer(1), 128),
            extra("num_experts_per_tok", integer(1), 8),
            extra("norm_topk_prob", flag(), False),
            extra("moe_intermediate_size", integer(1), 768),
        ),
    },
    joints=(
        rope(),
        llama.ONE_BIAS,
        Joint(
            ("sliding_window",),
            lambda v: {"sliding_window": v["sliding_window"] if v["use_sliding_window"] else None},
            lambda config, _: {
                "use_sliding_window": config.sliding_window is not None,
                "sliding_window": config.sliding_window,
            },
        ),
        _experts(*_QWEN3_NAMES),
    ),
    misfits=(*QWEN3.misfits, _misfit(*_QWEN3_NAMES)),
)
_OLMOE_NAMES = ("num_experts", *_NAMES)
OLMOE = _mixture(
    LLAMA,
    _OF_QWEN,
    llama.QK_NORMS,
    model_type="olmoe",
    classes=classes("Olmoe", "lm", "none"),
    keys={
        **llama.KEYS,
        **keys(
            llama.max_positions(4096),
            key("attention_bias", "attention_bias", False),
            key("rms_norm_eps", "norm_eps", 1e-5),
            extra("num_experts", integer(1), 64),
            extra("num_experts_per_tok", integer(1), 8),
            extra("norm_topk_prob", flag(), False),
            token("bos_token_id", "bos_id"),
            token("eos_token_id", "eos_id", 50_279),
            token("pad_token_id", "pad_id", 1),
            only("clip_qkv", None),
        ),
    },
    joints=(*LLAMA.joints, _experts(*_OLMOE_NAMES)),
    fixed={**LLAMA.fixed, "feed_forward_bias": False, "qk_norm": "whole"},
    misfits=(*LLAMA.misfits, _misfit(*_OLMOE_NAMES)),
)
