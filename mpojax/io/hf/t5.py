"""T5, version 1.0 and 1.1, mT5 and umT5; with the decoder, or the encoder alone."""

import dataclasses
from collections.abc import Mapping

from mpojax import models
from mpojax.checks import flag, null, text
from mpojax.io.generation_config import TOKEN_IDS
from mpojax.io.hf.family import ACTIVATIONS, Joint, extra, key, keys, name_of, only, token
from mpojax.io.hf.language_models import LanguageFamily
from mpojax.io.hf.names import Module, linear, norm, table


def _attention(name: str, path: str) -> dict[str, Module]:
    parts = {"q": "query", "k": "key", "v": "value", "o": "out"}
    return {f"{name}.{part}": linear(f"{path}/{own}") for part, own in parts.items()}


def _stack(stack: str, mark: str, feed_forward: int) -> dict[str, Module]:
    """Modules of the encoder or the decoder; `feed_forward` is the number of that in a layer."""
    layer, path = f"{stack}.block.{mark}.layer", f"{stack}/layers/{mark}"
    inner, block = f"{layer}.{feed_forward}.DenseReluDense", f"{path}/feed_forward"
    first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
    return {
        first: table(f"{stack}/relative_bias"),  # The first layer's serves all layers.
        f"{layer}.0.layer_norm": norm(f"{path}/attention_norm"),
        **_attention(f"{layer}.0.SelfAttention", f"{path}/attention"),
        f"{layer}.{feed_forward}.layer_norm": norm(f"{path}/feed_forward_norm"),
        f"{inner}.wi": linear(f"{block}/up", when=lambda config: not config.gated),
        f"{inner}.wi_0": linear(f"{block}/gate"),
        f"{inner}.wi_1": linear(f"{block}/up", when=lambda config: config.gated),
        f"{inner}.wo": linear(f"{block}/down"),
        f"{stack}.final_layer_norm": norm(f"{stack}/final_norm"),
    }


def _projection(name: str) -> dict:
    """Activation and gate that a `feed_forward_proj` stands for."""
    gate, dash, activation = name.rpartition("-")
    if gate + dash not in ("", "gated-"):
        raise ValueError(
            f"feed_forward_proj={name!r} (supported: an activation, or gated- and an activation)"
        )
    # "gated-gelu" is the approximation by a tanh, "gelu" alone is exact.
    activation = "gelu_new" if name == "gated-gelu" else activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"feed_forward_proj={activation!r} (supported: {', '.join(ACTIVATIONS)})")
    return {"activation": ACTIVATIONS[activation], "gated": bool(gate)}


def _write_projection(config: models.EncoderDecoderConfig, content: Mapping) -> dict:
    name = content.get("feed_forward_proj", "relu")
    if _projection(name) != {"activation": config.activation, "gated": config.gated}:
        name = name_of(config.activation, ACTIVATIONS)
        if config.gated:
            # There the name of the exact one stands for the approximation, and that for itself.
            name = "gated-" + {"gelu": "gelu_python", "gelu_new": "gelu"}.get(name, name)
    activation = "gelu_new" if name == "gated-gelu" else name.rpartition("-")[2]
    return {
        "feed_forward_proj": name,
        "is_gated_act": config.gated,
        "dense_act_fn": activation,
        "is_encoder_decoder": config.num_decoder_layers > 0,
    }


def _read_scale(values: Mapping) -> dict:
    # transformers 5 writes a key of its own, before that only tied models scaled.
    scaled = values["scale_decoder_outputs"]
    return {"scale_logits": values["tie_word_embeddings"] if scaled is None else scaled}


def _write_scale(config: models.EncoderDecoderConfig, _) -> dict:
    if config.tied and not config.scale_logits:
        # Versions 4 and 5 of transformers read this alike, with a copy of the table as output map.
        return {"tie_word_embeddings": False, "scale_decoder_outputs": False}
    return {}


def _read_start(values: Mapping) -> dict:
    start, pad = values["decoder_start_token_id"], values["pad_token_id"]
    return {"decoder_start_id": start if start is not None else pad if pad is not None else 0}


def _classes(name: str) -> dict[str, str]:
    return {
        "lm": f"{name}ForConditionalGeneration",
        "none": f"{name}Model",
        "encoder": f"{name}EncoderModel",
    }


def _lacks_decoder(values: Mapping) -> bool:
    classes = values.get("architectures") or ("",)
    return values["is_encoder_decoder"] is False and not classes[0].endswith("EncoderModel")


T5 = LanguageFamily(
    model_type="t5",
    config_class=models.EncoderDecoderConfig,
    classes=_classes("T5"),
    prefix="",
    embedding="shared.weight",
    copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    # Written by mistake by old versions; cross-attention has no distances.
    ignored_buffers=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    tensors={
        "shared": table("embeddings/word"),
        **_stack("encoder", "{i}", 1),
        **_stack("decoder", "{j}", 2),
        "decoder.block.{j}.layer.1.layer_norm": norm("decoder/layers/{j}/cross_attention_norm"),
        **_attention(
            "decoder.block.{j}.layer.1.EncDecAttention", "decoder/layers/{j}/cross_attention"
        ),
    },
    keys=keys(
        key("vocab_size"),
        key("d_model", "hidden_size"),
        key("d_kv", "head_size"),
        key("d_ff", "intermediate_size"),
        key("num_layers"),
        key("num_decoder_layers", "num_decoder_layers", None),
        key("num_heads"),
        key("relative_attention_num_buckets", "relative_buckets", 32),
        key("relative_attention_max_distance", "relative_distance", 128),
        key("layer_norm_epsilon", "norm_eps", 1e-6),
        key("dropout_rate", "dropout", 0.1),
        extra("feed_forward_proj", text(100), "relu"),
        extra("tie_word_embeddings", flag(), True),
        extra("scale_decoder_outputs", flag() | null()),
        token("pad_token_id", "pad_id", 0),
        token("eos_token_id", "eos_id", 1),
        extra("decoder_start_token_id", TOKEN_IDS),
        only("is_encoder_decoder", True, False, None),
        only("is_decoder", False, None),
    ),
    joints=(
        Joint(
            ("activation", "gated"),
            lambda v: _projection(v["feed_forward_proj"]),
            _write_projection,
        ),
        Joint(("scale_logits",), _read_scale, _write_scale),
        Joint(
            ("decoder_start_id",),
            _read_start,
            lambda config, _: {"decoder_start_token_id": config.decoder_start_id},
        ),
    ),
    refused=(("is_encoder_decoder=False (supported: True, of an EncoderModel)", _lacks_decoder),),
    tensors_decide="scale_decoder_outputs",
)
_NEWER = {**T5.keys, **keys(extra("feed_forward_proj", text(100), "gated-gelu"))}
# Never scales its logits; files say tie_word_embeddings=False whatever they hold.
MT5 = dataclasses.replace(
    T5,
    model_type="mt5",
    classes=_classes("MT5"),
    keys=_NEWER,
    joints=tuple(joint for joint in T5.joints if joint.fields != ("scale_logits",)),
    fixed={"scale_logits": False},
    tensors_decide=None,
    untold=True,
)


def _bias_of_each(name: str, module: Module) -> tuple[str, Module]:
    """Where each layer has a table of its own."""
    if not name.endswith("relative_attention_bias"):
        return name, module
    stack = name.partition(".")[0]
    mark = {"encoder": "{i}", "decoder": "{j}"}[stack]
    return name.replace(".0.", f".{mark}.", 1), table(f"{stack}/layers/{mark}/relative_bias")


UMT5 = dataclasses.replace(
    T5,
    model_type="umt5",
    classes=_classes("UMT5"),
    keys=_NEWER,
    fixed={"relative_per_layer": True},
    tensors=dict(_bias_of_each(*entry) for entry in T5.tensors.items()),
)
