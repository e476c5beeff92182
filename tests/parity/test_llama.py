"""LLaMA and its like against transformers, both ways: groups of heads, rotary scaling, biases."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import compression, io, models, nn
from tests import marks
from tests.parity import language_families as families
from tests.parity import reference

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = {
    "llama": ("LlamaForCausalLM", {}),
    "llama no groups, tied": (
        "LlamaForCausalLM",
        {"num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    "llama biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama wide heads": ("LlamaForCausalLM", {"head_dim": 10, "num_key_value_heads": 1}),
    "llama 3": ("LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "mistral": ("MistralForCausalLM", {"sliding_window": None, "head_dim": 8}),
    "mistral wide window": ("MistralForCausalLM", {"sliding_window": 32}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
}


# With fewer features than others, or another name.
PLAIN = {"llama", "mistral wide window"}


@pytest.mark.parametrize("name", marks.slow_but(CASES.keys() - PLAIN, CASES))
def test_logits(tmp_path, name):
    kind, settings = CASES[name]
    theirs = families.model(kind, seed=1, **{**families.SIZES_OF_LLAMA, **settings})
    ours, again = families.both_ways(theirs, tmp_path)
    assert isinstance(ours, models.LanguageModel)
    assert ours.config.tied == settings.get("tie_word_embeddings", False)
    assert type(again) is type(theirs)
    ids = families.token_ids((3, 20))
    mask = np.ones((3, 20), int)
    mask[1, :4], mask[2, :19] = 0, 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    expected = families.logits(theirs, **inputs)
    families.assert_same_logits(families.ours(ours, ids, mask), expected, mask == 1)
    np.testing.assert_array_equal(families.logits(again, **inputs), expected)
    assert again.config.rope_parameters == theirs.config.rope_parameters


def test_both_styles_of_rotary_settings(tmp_path):
    """Files before transformers 5 keep base and scaling apart; old ones hold the frequencies."""
    theirs = families.model(
        "LlamaForCausalLM", seed=2, **families.SIZES_OF_LLAMA, rope_parameters=LLAMA3
    )
    ours = io.load_pretrained(families.saved(theirs, tmp_path / "new"))
    assert ours.config.rotary_scaling == nn.RopeScaling.of((8.0, 1.0, 4.0, 16))
    assert ours.config.rotary_base == 500.0
    content = json.loads((tmp_path / "new" / "config.json").read_text(encoding="utf-8"))
    scaling = content.pop("rope_parameters")
    content["rope_theta"] = scaling.pop("rope_theta")
    content["rope_scaling"] = scaling
    tensors = io.read_weights(tmp_path / "new" / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    text = json.dumps({**content, "pretraining_tp": 1})
    io.write_folder(tmp_path / "old", tensors, {"format": "pt"}, {"config.json": text})
    again = io.load_pretrained(tmp_path / "old")
    assert again.config.rotary_scaling == ours.config.rotary_scaling
    assert again.config.rotary_base == ours.config.rotary_base
    for name, array in models.to_arrays(ours).items():
        np.testing.assert_array_equal(models.to_arrays(again)[name], array)


def test_half_precision_files_load_as_float32(tmp_path):
    theirs = families.model("LlamaForCausalLM", seed=3, **families.SIZES_OF_LLAMA)
    ours = io.load_pretrained(families.saved(theirs.bfloat16(), tmp_path / "theirs"))
    ids = families.token_ids((2, 8))
    # Not theirs.float(), which would keep frequencies that were rounded to bfloat16.
    kind = reference.transformers.LlamaForCausalLM
    theirs = reference.quietly(
        kind.from_pretrained, tmp_path / "theirs", dtype=reference.torch.float32
    )
    expected = families.logits(theirs, input_ids=ids)
    families.assert_same_logits(families.ours(ours, ids), expected)
    assert json.loads(ours.config.source_config)["dtype"] == "bfloat16"
    io.export_huggingface(ours, tmp_path / "ours")
    assert reference.load(tmp_path / "ours").dtype == reference.torch.float32


def test_a_chain_merges_and_exports(tmp_path):
    theirs = families.model("LlamaForCausalLM", seed=4, **families.SIZES_OF_LLAMA)
    ours = io.load_pretrained(families.saved(theirs, tmp_path / "theirs"))
    small, _ = compression.compress(ours, [(".*/(query|gate|down)", {"cores": 3})])
    with pytest.raises(ValueError, match=r"export_huggingface\(merge\(model\), folder\)"):
        io.export_huggingface(small, tmp_path / "ours")
    io.export_huggingface(compression.merge(small), tmp_path / "ours")
    again = reference.load(tmp_path / "ours", reference.transformers.AutoModelForCausalLM)
    ids = families.token_ids((2, 8))
    np.testing.assert_allclose(
        families.logits(again, input_ids=ids), families.ours(ours, ids), rtol=0, atol=1e-4
    )
