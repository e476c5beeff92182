"""GPT-2."""

from mpojax.checks import flag, integer, null
from mpojax.io.hf.family import Joint, activation, extra, key, keys, only, token
from mpojax.io.hf.language_models import LanguageFamily, classes, heads
from mpojax.io.hf.names import conv1d, norm, table

_LAYER = "layers/{i}"


def _write_inner(config, content) -> dict:
    usual = config.intermediate_size == 4 * config.hidden_size
    return {"n_inner": None if usual and not content.get("n_inner") else config.intermediate_size}


GPT2 = LanguageFamily(
    model_type="gpt2",
    classes={**classes("GPT2"), "lm": "GPT2LMHeadModel"},
    heads=heads(tokens="classifier"),
    prefix="transformer.",
    embedding="wte.weight",
    ignored_buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
    tensors={
        "wte": table("embeddings/word"),
        "wpe": table("embeddings/position"),
        "h.{i}.ln_1": norm(f"{_LAYER}/attention_norm"),
        "h.{i}.attn.c_attn": conv1d(
            *(f"{_LAYER}/attention/{name}" for name in ("query", "key", "value"))
        ),
        "h.{i}.attn.c_proj": conv1d(f"{_LAYER}/attention/out"),
        "h.{i}.ln_2": norm(f"{_LAYER}/feed_forward_norm"),
        "h.{i}.mlp.c_fc": conv1d(f"{_LAYER}/feed_forward/up"),
        "h.{i}.mlp.c_proj": conv1d(f"{_LAYER}/feed_forward/down"),
        "ln_f": norm("final_norm"),
    },
    keys=keys(
        key("vocab_size"),
        key("n_positions", "max_positions", 1024),
        key("n_embd", "hidden_size"),
        key("n_layer", "num_layers"),
        key("n_head", "num_heads"),
        extra("n_inner", integer(1) | null()),
        activation("activation_function", "gelu_new"),
        key("layer_norm_epsilon", "norm_eps", 1e-5),
        key("resid_pdrop", "dropout", 0.1),
        key("embd_pdrop", "embedding_dropout", 0.1),
        key("attn_pdrop", "attention_dropout", 0.1),
        extra("tie_word_embeddings", flag(), True),
        token("bos_token_id", "bos_id", 50256),
        token("eos_token_id", "eos_id", 50256),
        token("pad_token_id", "pad_id"),
        # Not here: reorder_and_upcast_attn, which is about rounding in half precision alone.
        only("scale_attn_weights", True),
        only("scale_attn_by_inverse_layer_idx", False, None),
        only("add_cross_attention", False, None),
        only("pruned_heads", {}, None),
        only("quantization_config", None),
    ),
    joints=(
        Joint(
            fields=("intermediate_size",),
            read=lambda v: {"intermediate_size": v["n_inner"] or 4 * v["n_embd"]},
            write=_write_inner,
        ),
        Joint(fields=("num_kv_heads", "head_size")),  # What the config takes by default.
    ),
    misfits=(
        ("num_kv_heads={0.num_kv_heads}", lambda c: c.num_kv_heads != c.num_heads),
        ("head_size={0.head_size}", lambda c: c.num_heads * c.head_size != c.hidden_size),
    ),
)
