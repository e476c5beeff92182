"""Families of decoders against transformers, both ways, and with a KV cache."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import models
from tests import marks
from tests.parity import language_families as families

LLAMA = families.SIZES_OF_LLAMA
GEMMA = {
    **LLAMA,
    "pad_token_id": 0,
    "head_dim": 8,
    "num_hidden_layers": 3,
    "query_pre_attn_scalar": 12,
    "sliding_window": 5,
}
NEOX = {n: v for n, v in LLAMA.items() if n != "num_key_value_heads"} | {
    "hidden_size": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
OPT = {
    "pad_token_id": 0,
    "hidden_size": 24,
    "ffn_dim": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}


def _scaled(length: int = 32, **rope):
    """A LLaMA with a scaling of rotary positions; texts of the test have 20 tokens."""
    more = {"head_dim": 8, "max_position_embeddings": length}
    return "LlamaForCausalLM", {**LLAMA, **more, "rope_parameters": {"rope_theta": 100.0, **rope}}


CASES = {
    "mistral window": ("MistralForCausalLM", {**LLAMA, "sliding_window": 5}),
    "qwen2 window above": (
        "Qwen2ForCausalLM",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", {**LLAMA, "head_dim": 8}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {**GEMMA, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    ),
    "gemma3 scaled": (
        "Gemma3ForCausalLM",
        {
            **GEMMA,
            "sliding_window_pattern": 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "phi3": ("Phi3ForCausalLM", {**LLAMA, "pad_token_id": 0}),
    "phi4": (
        "Phi3ForCausalLM",
        {
            **LLAMA,
            "pad_token_id": 0,
            "hidden_size": 32,
            "tie_word_embeddings": True,
            "sliding_window": 7,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.5, 2.0],
                "long_factor": [1.0, 3.0, 5.0],
            },
        },
    ),
    "pythia": ("GPTNeoXForCausalLM", {**NEOX}),
    "gpt-neox in turn": (
        "GPTNeoXForCausalLM",
        {**NEOX, "use_parallel_residual": False, "attention_bias": False, "hidden_act": "relu"},
    ),
    "opt": ("OPTForCausalLM", {**OPT}),
    "opt without biases": ("OPTForCausalLM", {**OPT, "enable_bias": False}),
    "olmo2": ("Olmo2ForCausalLM", {**LLAMA, "pad_token_id": 0}),
    "smollm3": (
        "SmolLM3ForCausalLM",
        {**LLAMA, "pad_token_id": 0, "num_hidden_layers": 3, "no_rope_layer_interval": 2},
    ),
    "linear": _scaled(rope_type="linear", factor=4.0),
    "dynamic": _scaled(rope_type="dynamic", factor=3.0, length=12),
    "yarn": _scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=8),
    "yarn by hand": _scaled(
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=8,
        beta_fast=2.0,
        beta_slow=0.5,
        truncate=False,
        attention_factor=1.3,
    ),
    "yarn of two parts": _scaled(
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=8,
        mscale=0.7,
        mscale_all_dim=0.3,
    ),
    "mixtral": (
        "MixtralForCausalLM",
        {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 7},
    ),
    "qwen2 moe": (
        "Qwen2MoeForCausalLM",
        {**LLAMA, **EXPERTS, "shared_expert_intermediate_size": 12, "decoder_sparse_step": 2},
    ),
    "qwen3 moe": (
        "Qwen3MoeForCausalLM",
        {**LLAMA, **EXPERTS, "head_dim": 8, "norm_topk_prob": True, "mlp_only_layers": [0]},
    ),
    "olmoe": ("OlmoeForCausalLM", {**LLAMA, **EXPERTS, "pad_token_id": 0}),
    "smollm3 window": (
        "SmolLM3ForCausalLM",
        {
            **LLAMA,
            "pad_token_id": 0,
            "no_rope_layers": [0, 1],
            "use_sliding_window": True,
            "sliding_window": 6,
        },
    ),
}


# Each is a part of one that stays: its class with fewer features, or its feature elsewhere.
PARTS = {"mistral window", "gemma3", "phi3", "smollm3", "linear", "yarn"}


@pytest.mark.parametrize("name", marks.slow_but(CASES.keys() - PARTS, CASES))
def test_logits_round_trip_and_cache(tmp_path, name):
    kind, settings = CASES[name]
    theirs = families.model(kind, seed=1, **settings)
    ours, again = families.both_ways(theirs, tmp_path)
    assert type(again) is type(theirs)
    ids, mask = families.token_ids((3, 20)), np.ones((3, 20), int)
    mask[1, :4], mask[2, :19] = 0, 0
    positions = {} if "OPT" in kind else {"position_ids": np.maximum(mask.cumsum(1) - 1, 0)}
    inputs = {"input_ids": ids, "attention_mask": mask, **positions}
    expected = families.logits(theirs, **inputs)
    logits = families.ours(ours, ids, mask)
    families.assert_same_logits(logits, expected, mask == 1)
    np.testing.assert_allclose(families.logits(again, **inputs), expected, rtol=0, atol=1e-5)
    written, given = again.config.to_dict(), theirs.config.to_dict()
    given = {n: v for n, v in given.items() if v is not None and n != "_name_or_path"}
    if "mscale" in given.get("rope_parameters", ()):  # written as the one factor that it makes
        del given["rope_parameters"]
    assert {name: written[name] for name in given} == given
    families.assert_same_logits(families.in_two_parts(ours, ids, mask), logits, mask == 1)


def test_layers_differ_in_windows_and_are_scanned_as_one(tmp_path):
    theirs = families.model(*CASES["qwen2 window above"][:1], 1, **CASES["qwen2 window above"][1])
    ours, _ = families.both_ways(theirs, tmp_path)
    assert [kind.window for kind in ours.config.layer_kinds] == [None, 5]
    assert ours.tower.stack_ranges == (range(2),)
    assert isinstance(ours, models.LanguageModel)
