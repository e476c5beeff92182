"""config.json of published decoders, in the words of their time: counts and settings."""

import dataclasses

import pytest
from flax import nnx

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import models
from mpojax.io.hf import checkpoints
from tests.parity import reference


def _sizes(vocabulary, hidden, inner, layers, heads, kv_heads, positions, **more) -> dict:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    values = (vocabulary, hidden, inner, layers, heads, kv_heads, positions)
    found = dict(zip(names, values, strict=True)) | more
    return {name: value for name, value in found.items() if value is not None}


_WAVES = [1.0 + 0.5 * wave for wave in range(48)]
PUBLISHED = {
    "Mistral-7B-v0.1": (
        "MistralForCausalLM",
        _sizes(32000, 4096, 14336, 32, 32, 8, 32768, sliding_window=4096, rope_theta=10000.0),
    ),
    "Qwen3-0.6B": (
        "Qwen3ForCausalLM",
        _sizes(151936, 1024, 3072, 28, 16, 8, 40960, head_dim=128, rope_theta=1000000)
        | {"sliding_window": None, "use_sliding_window": False, "max_window_layers": 28}
        | {"attention_bias": False, "rope_scaling": None, "tie_word_embeddings": True},
    ),
    "gemma-2-2b": (
        "Gemma2ForCausalLM",
        _sizes(256000, 2304, 9216, 26, 8, 4, 8192, head_dim=256, rope_theta=10000.0)
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
        | {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
        | {"query_pre_attn_scalar": 256, "sliding_window": 4096, "cache_implementation": "hybrid"},
    ),
    "gemma-3-1b": (
        "Gemma3ForCausalLM",
        _sizes(262144, 1152, 6912, 26, 4, 1, 32768, head_dim=256, rope_theta=1000000)
        | {"rope_local_base_freq": 10000, "rope_scaling": None, "sliding_window_pattern": 6}
        | {"query_pre_attn_scalar": 256, "sliding_window": 512, "attn_logit_softcapping": None}
        | {"hidden_activation": "gelu_pytorch_tanh", "model_type": "gemma3_text"},
    ),
    "Phi-3.5-mini": (
        "Phi3ForCausalLM",
        _sizes(32064, 3072, 8192, 32, 32, 32, 131072, rope_theta=10000.0, rms_norm_eps=1e-5)
        | {"original_max_position_embeddings": 4096, "sliding_window": 262144}
        | {"rope_scaling": {"type": "longrope", "short_factor": _WAVES, "long_factor": _WAVES}},
    ),
    "Phi-4-mini": (
        "Phi3ForCausalLM",
        _sizes(200064, 3072, 8192, 32, 24, 8, 131072, rope_theta=10000.0, rms_norm_eps=1e-5)
        | {"original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75}
        | {"tie_word_embeddings": True, "pad_token_id": 199999, "sliding_window": 262144}
        | {"rope_scaling": {"type": "longrope", "short_factor": _WAVES, "long_factor": _WAVES}},
    ),
    "pythia-160m": (
        "GPTNeoXForCausalLM",
        _sizes(50304, 768, 3072, 12, 12, None, 2048, rotary_pct=0.25, rotary_emb_base=10000)
        | {"layer_norm_eps": 1e-5, "use_parallel_residual": True, "tie_word_embeddings": False},
    ),
    "opt-125m": (
        "OPTForCausalLM",
        _sizes(50272, 768, None, 12, 12, None, 2048, ffn_dim=3072, word_embed_proj_dim=768)
        | {"activation_function": "relu", "do_layer_norm_before": True, "prefix": "</s>"},
    ),
    "OLMo-2-0425-1B": (
        "Olmo2ForCausalLM",
        _sizes(100352, 2048, 8192, 16, 16, 16, 4096, rope_theta=500000, rms_norm_eps=1e-6)
        | {"rope_scaling": None, "eos_token_id": 100257, "pad_token_id": 100277},
    ),
    "SmolLM3-3B": (
        "SmolLM3ForCausalLM",
        _sizes(128256, 2048, 11008, 36, 16, 4, 65536, rope_theta=5000000.0)
        | {"no_rope_layers": [1, 1, 1, 0] * 9, "no_rope_layer_interval": 4}
        | {"layer_types": ["full_attention"] * 36, "max_window_layers": 28, "rope_scaling": None},
    ),
    "Mixtral-8x7B-v0.1": (
        "MixtralForCausalLM",
        _sizes(32000, 4096, 14336, 32, 32, 8, 32768, rope_theta=1e6, sliding_window=None)
        | {"num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02},
    ),
    "Qwen1.5-MoE-A2.7B": (
        "Qwen2MoeForCausalLM",
        _sizes(151936, 2048, 5632, 24, 16, 16, 8192, rope_theta=1e6, sliding_window=32768)
        | {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408}
        | {"shared_expert_intermediate_size": 5632, "norm_topk_prob": False}
        | {"use_sliding_window": False, "max_window_layers": 21, "decoder_sparse_step": 1},
    ),
    "Qwen3-30B-A3B": (
        "Qwen3MoeForCausalLM",
        _sizes(151936, 2048, 6144, 48, 32, 4, 40960, head_dim=128, rope_theta=1000000.0)
        | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
        | {"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1}
        | {"sliding_window": None, "use_sliding_window": False, "max_window_layers": 48},
    ),
    "OLMoE-1B-7B": (
        "OlmoeForCausalLM",
        _sizes(50304, 2048, 1024, 16, 16, 16, 4096, rope_theta=10000.0, clip_qkv=None)
        | {"num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_and_settings(name):
    kind, content = PUBLISHED[name]
    made = getattr(reference.transformers, kind)
    theirs = made.config_class(**content)
    expected = reference.num_parameters(made, theirs)
    content = {"model_type": theirs.model_type, "architectures": [kind], **content}
    _, old, _ = checkpoints.read_config(content, {}, "its time")
    abstract = nnx.eval_shape(lambda: models.build(old, rngs=nnx.Rngs(0)))
    assert sum(models.count_parameters(abstract).values()) == expected
    today = theirs.to_dict() | {"architectures": [kind]}
    _, new, _ = checkpoints.read_config(today, {}, "today")
    assert dataclasses.replace(old, source_config="{}") == (
        dataclasses.replace(new, source_config="{}")
    )
