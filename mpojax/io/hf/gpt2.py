"""Names and settings of GPT-2 checkpoints, as data."""

from collections.abc import Mapping

from mpojax import models
from mpojax.checks import integer, null, text
from mpojax.io.hf.architectures import Row, norm, rows
from mpojax.io.hf.language_architectures import LanguageArchitecture, activation, activation_name


def _conv1d(theirs: str, *ours: str) -> tuple[Row, ...]:
    """A map of GPT-2, whose weights are (in, out) already; several of ours side by side."""
    return tuple(
        (f"{theirs}.{their_part}", f"{path}/{part}", "same")
        for their_part, part in (("weight", "kernel"), ("bias", "bias"))
        for path in ours
    )


_OURS = "layers/{i}"
_QUERY_KEY_VALUE = tuple(f"{_OURS}/attention/{name}" for name in ("query", "key", "value"))


def _read(values: Mapping) -> dict:
    inner = values["n_inner"]
    return {
        "intermediate_size": 4 * values["n_embd"] if inner is None else inner,
        "activation": activation("activation_function", values["activation_function"]),
    }


def _misfits(config: models.DecoderConfig) -> list[str]:
    wrong = []
    if config.num_kv_heads != config.num_heads:
        wrong.append(f"num_kv_heads={config.num_kv_heads}")
    if config.num_heads * config.head_size != config.hidden_size:
        wrong.append(f"head_size={config.head_size}")
    return wrong


def _write(config: models.DecoderConfig, source: Mapping) -> dict:
    usual = config.intermediate_size == 4 * config.hidden_size
    return {
        "n_inner": None if usual and source.get("n_inner") is None else config.intermediate_size,
        "activation_function": activation_name(
            config.activation, source.get("activation_function", "gelu_new")
        ),
    }


GPT2 = LanguageArchitecture(
    model_type="gpt2",
    kind=models.DecoderConfig,
    classes=("GPT2LMHeadModel",),
    headless=("GPT2Model",),
    prefix="transformer.",
    rows={
        False: rows(
            (
                ("wte.weight", "embeddings/word/table", "same"),
                ("wpe.weight", "embeddings/position/table", "same"),
            ),
            norm("h.{i}.ln_1", f"{_OURS}/attention_norm"),
            _conv1d("h.{i}.attn.c_attn", *_QUERY_KEY_VALUE),
            _conv1d("h.{i}.attn.c_proj", f"{_OURS}/attention/out"),
            norm("h.{i}.ln_2", f"{_OURS}/feed_forward_norm"),
            _conv1d("h.{i}.mlp.c_fc", f"{_OURS}/feed_forward/up"),
            _conv1d("h.{i}.mlp.c_proj", f"{_OURS}/feed_forward/down"),
            norm("ln_f", "final_norm"),
            (("lm_head.weight", "head/kernel", "transpose"),),
        ),
    },
    table="wte.weight",
    copies=("lm_head.weight",),
    harmless=r"h\.\d+\.attn\.(bias|masked_bias)",
    fields={
        "vocab_size": "vocab_size",
        "n_positions": "max_positions",
        "n_embd": "hidden_size",
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "layer_norm_epsilon": "norm_eps",
        "resid_pdrop": "dropout",
        "embd_pdrop": "embedding_dropout",
        "attn_pdrop": "attention_dropout",
    },
    defaults={
        "n_positions": 1024,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "tie_word_embeddings": True,
    },
    ids={
        "bos_token_id": ("bos_id", 50256),
        "eos_token_id": ("eos_id", 50256),
        "pad_token_id": ("pad_id", None),
    },
    types={"n_inner": integer(1) | null(), "activation_function": text(100)},
    fixed={},  # The defaults of our settings are GPT-2.
    # Not here: reorder_and_upcast_attn, which is about rounding in half precision alone.
    required={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False, None),
        "add_cross_attention": (False, None),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
    },
    read=_read,
    derived=("num_kv_heads", "head_size", "intermediate_size", "activation"),
    misfits=_misfits,
    write=_write,
)
