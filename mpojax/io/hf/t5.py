"""Names and settings of T5 checkpoints, version 1.0 and 1.1, as data."""

from collections.abc import Mapping

from mpojax import models
from mpojax.checks import flag, null, text
from mpojax.io.hf.architectures import Row, rows
from mpojax.io.hf.language_architectures import (
    TOKEN_IDS,
    LanguageArchitecture,
    activation,
    activation_name,
)

_ENCODER, _DECODER = "encoder.block.{i}.layer", "decoder.block.{j}.layer"
_OUR_ENCODER, _OUR_DECODER = "encoder/layers/{i}", "decoder/layers/{j}"


def _attention(theirs: str, ours: str) -> tuple[Row, ...]:
    names = (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out"))
    return tuple((f"{theirs}.{t}.weight", f"{ours}/{o}/kernel", "transpose") for t, o in names)


def _feed_forward(theirs: str, ours: str, gated: bool) -> tuple[Row, ...]:
    into = (("wi_0", "gate"), ("wi_1", "up")) if gated else (("wi", "up"),)
    names = (*into, ("wo", "down"))
    return tuple((f"{theirs}.{t}.weight", f"{ours}/{o}/kernel", "transpose") for t, o in names)


def _scale(theirs: str, ours: str) -> tuple[Row, ...]:
    return ((f"{theirs}.weight", f"{ours}/scale", "same"),)


def _distances(tower: str) -> tuple[Row, ...]:
    """The first layer's table of distances serves all layers of a tower."""
    name = f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return ((name, f"{tower}/relative_bias/table", "same"),)


def _all_rows(gated: bool) -> tuple[Row, ...]:
    return rows(
        (("shared.weight", "embeddings/word/table", "same"),),
        _distances("encoder"),
        _scale(f"{_ENCODER}.0.layer_norm", f"{_OUR_ENCODER}/attention_norm"),
        _attention(f"{_ENCODER}.0.SelfAttention", f"{_OUR_ENCODER}/attention"),
        _scale(f"{_ENCODER}.1.layer_norm", f"{_OUR_ENCODER}/feed_forward_norm"),
        _feed_forward(f"{_ENCODER}.1.DenseReluDense", f"{_OUR_ENCODER}/feed_forward", gated),
        _scale("encoder.final_layer_norm", "encoder/final_norm"),
        _distances("decoder"),
        _scale(f"{_DECODER}.0.layer_norm", f"{_OUR_DECODER}/attention_norm"),
        _attention(f"{_DECODER}.0.SelfAttention", f"{_OUR_DECODER}/attention"),
        _scale(f"{_DECODER}.1.layer_norm", f"{_OUR_DECODER}/cross_attention_norm"),
        _attention(f"{_DECODER}.1.EncDecAttention", f"{_OUR_DECODER}/cross_attention"),
        _scale(f"{_DECODER}.2.layer_norm", f"{_OUR_DECODER}/feed_forward_norm"),
        _feed_forward(f"{_DECODER}.2.DenseReluDense", f"{_OUR_DECODER}/feed_forward", gated),
        _scale("decoder.final_layer_norm", "decoder/final_norm"),
        (("lm_head.weight", "head/kernel", "transpose"),),
    )


def _projection(text: str) -> dict:
    """Activation and gate that a `feed_forward_proj` stands for."""
    parts = text.split("-")
    if len(parts) > 2 or (len(parts) == 2 and parts[0] != "gated"):
        raise ValueError(
            f"feed_forward_proj={text!r} (supported: an activation, or gated- and an activation)"
        )
    # "gated-gelu" is the approximation by a tanh, "gelu" alone is exact.
    name = "gelu_new" if text == "gated-gelu" else parts[-1]
    return {
        "activation": activation("feed_forward_proj", name),
        "gated": len(parts) == 2,
    }


def _read(values: Mapping) -> dict:
    # transformers 5 writes a key of its own, before that only tied models scaled.
    scaled = values.get("scale_decoder_outputs", values["tie_word_embeddings"] is not False)
    start, pad = values["decoder_start_token_id"], values.get("pad_token_id")
    return {
        **_projection(values["feed_forward_proj"]),
        "scale_logits": bool(scaled),
        "decoder_start_id": start if start is not None else pad if pad is not None else 0,
    }


def _write(config: models.EncoderDecoderConfig, source: Mapping) -> dict:
    projection = source.get("feed_forward_proj", "relu")
    own = {"activation": config.activation, "gated": config.gated}
    if _projection(projection) != own:
        name = activation_name(config.activation, "")
        # With a gate the name of the exact one stands for the approximation, and that for itself.
        name = {"gelu": "gelu_python", "gelu_new": "gelu"}.get(name, name) if config.gated else name
        projection = f"gated-{name}" if config.gated else name
    content = {
        "feed_forward_proj": projection,
        "is_gated_act": config.gated,
        "dense_act_fn": "gelu_new" if projection == "gated-gelu" else projection.split("-")[-1],
        "decoder_start_token_id": config.decoder_start_id,
        "is_encoder_decoder": True,
    }
    if config.tied and not config.scale_logits:
        # Versions 4 and 5 of transformers read this alike, with a copy of the table as output map.
        content |= {"tie_word_embeddings": False, "scale_decoder_outputs": False}
    return content


T5 = LanguageArchitecture(
    model_type="t5",
    kind=models.EncoderDecoderConfig,
    classes=("T5ForConditionalGeneration",),
    headless=("T5Model",),
    prefix="",
    rows={gated: _all_rows(gated) for gated in (False, True)},
    table="shared.weight",
    copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
    # Written by mistake by old versions; cross-attention has no distances.
    harmless=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    fields={
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "d_kv": "head_size",
        "d_ff": "intermediate_size",
        "num_layers": "num_layers",
        "num_decoder_layers": "num_decoder_layers",
        "num_heads": "num_heads",
        "relative_attention_num_buckets": "relative_buckets",
        "relative_attention_max_distance": "relative_distance",
        "layer_norm_epsilon": "norm_eps",
        "dropout_rate": "dropout",
    },
    defaults={
        "num_decoder_layers": None,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.1,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
        "decoder_start_token_id": None,
    },
    ids={"pad_token_id": ("pad_id", 0), "eos_token_id": ("eos_id", 1)},
    types={
        "feed_forward_proj": text(100),
        "decoder_start_token_id": TOKEN_IDS,
        "scale_decoder_outputs": flag() | null(),
    },
    fixed={},
    required={
        "is_encoder_decoder": (True, None),
        "is_decoder": (False, None),
        "quantization_config": (None,),
    },
    read=_read,
    derived=("activation", "gated", "scale_logits", "decoder_start_id"),
    misfits=lambda config: [],
    write=_write,
    tensors_decide="scale_decoder_outputs",
)
