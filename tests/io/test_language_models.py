"""Checkpoints of language models without torch: coverage, settings, errors; folders of ours."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from flax import nnx

from mpojax import compression, io, models
from mpojax.io.hf import checkpoints
from mpojax.models import arrays as arrays_lib
from mpojax.nn.moe.settings import ExpertSettings
from tests.io import language_helpers as helpers

every_kind = pytest.mark.parametrize("name", helpers.CONFIGS)


def _import(content, tensors):
    return checkpoints.import_model(content, tensors, "FOLDER")


@pytest.mark.parametrize("config", helpers.VARIANTS.values(), ids=helpers.VARIANTS)
def test_export_and_import_are_inverse(config):
    arrays = helpers.arrays(config)
    content, tensors = checkpoints.export_model(config, arrays)
    again, read = _import(json.loads(json.dumps(content)), tensors)
    assert dataclasses.replace(again, source_config="{}") == config
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


@every_kind
def test_every_tensor_is_needed_and_none_may_be_left_over(name, monkeypatch):
    monkeypatch.setattr(arrays_lib, "_MAX_LINES", 1000)
    content, tensors = helpers.checkpoint(helpers.CONFIGS[name])
    with pytest.raises(ValueError, match="weights in FOLDER do not fit") as error:
        _import(content, {"more": np.zeros(1)})
    named = {line.strip() for line in str(error.value).splitlines()[1:]}
    short = {name.removeprefix("transformer.").removeprefix("model.") for name in tensors}
    assert named == {*(f"missing: {name}" for name in short), "unexpected: more"}
    wrong = {**tensors, "more": np.zeros(1, np.float32)}
    last = list(tensors)[-1]
    wrong[last] = tensors[last][..., :-1]
    first = next(iter(tensors))
    wrong[first] = tensors[first].astype(np.int32)
    with pytest.raises(ValueError, match="weights in FOLDER do not fit") as error:
        _import(content, wrong)
    lines = sorted(line.strip().partition(":")[0] for line in str(error.value).splitlines()[1:])
    assert lines == ["not floating point", "shape mismatch", "unexpected"]


def test_queries_keys_and_values_of_gpt2_are_one_tensor():
    arrays = helpers.arrays(helpers.GPT2)
    _, tensors = helpers.checkpoint(helpers.GPT2)
    fused = tensors["transformer.h.1.attn.c_attn.weight"]
    assert fused.shape == (12, 36)
    key = arrays["layers/1/attention/key/kernel"]
    np.testing.assert_array_equal(fused[:, 12:24], key)
    bias = tensors["transformer.h.1.attn.c_attn.bias"]
    np.testing.assert_array_equal(bias[24:], arrays["layers/1/attention/value/bias"])


def test_gates_have_their_own_names():
    config = helpers.VARIANTS["t5 1.1"]
    arrays, (_, tensors) = helpers.arrays(config), helpers.checkpoint(config)
    for theirs, ours in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down")):
        np.testing.assert_array_equal(
            tensors[f"decoder.block.2.layer.2.DenseReluDense.{theirs}.weight"],
            arrays[f"decoder/layers/2/feed_forward/{ours}/kernel"].T,
        )


@pytest.mark.parametrize(
    ("name", "copy", "table"),
    [
        ("gpt2", "lm_head.weight", "transformer.wte.weight"),
        ("t5", "lm_head.weight", "shared.weight"),
        ("t5", "decoder.embed_tokens.weight", "shared.weight"),
    ],
)
def test_copies_of_the_word_table(name, copy, table):
    content, tensors = helpers.checkpoint(helpers.CONFIGS[name])
    _, expected = _import(content, tensors)
    _, arrays = _import(content, {**tensors, copy: tensors[table]})
    assert set(arrays) == set(expected)
    with pytest.raises(ValueError, match=f"{copy} differs from the token embedding"):
        _import(content, {**tensors, copy: tensors[table] + 1})
    # The table may be there under another of its names alone.
    moved = {n: t for n, t in tensors.items() if n != table} | {copy: tensors[table]}
    _, arrays = _import(content, moved)
    np.testing.assert_array_equal(
        arrays["embeddings/word/table"], expected["embeddings/word/table"]
    )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"scale_attn_weights": False}, r"scale_attn_weights=False \(supported: True\)"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("gpt2", {"activation_function": "mish"}, r"activation_function='mish' \(supported: gelu"),
        (
            "gpt2",
            {"architectures": ["GPT2ForQuestionAnswering"]},
            "GPT2ForQuestionAnswering.*supported are GPT2LMHead",
        ),
        (
            "t5",
            {"architectures": ["T5Model"], "tie_word_embeddings": False},
            "T5Model with tie_word_embeddings=False: it has no output map.*Give a T5ForCond",
        ),
        ("gpt2", {"n_head": 5}, "hidden_size=12 is not a multiple of num_heads=5"),
        ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("t5", {"feed_forward_proj": "wide-gelu"}, "feed_forward_proj='wide-gelu'"),
        ("t5", {"feed_forward_proj": "gated-mish"}, r"feed_forward_proj='mish' \(supported: gelu"),
        ("t5", {"relative_attention_num_buckets": 6}, "relative_buckets=6 must be a multiple of 4"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rotary positions: factor is missing"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "mrope", "factor": 2.0}},
            "rope_type='mrope' must be one of 'linear', 'dynamic', 'llama3', 'yarn', 'longrope'",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
            "rope_type='llama3' also needs: low_freq_factor, high_freq_factor",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("llama", {"model_type": "mistral", "sliding_window": 0}, "sliding_window=0 must be"),
        ("llama", {"num_key_value_heads": 3}, "num_heads=2 is not a multiple of num_kv_heads=3"),
    ],
)
def test_unsupported_configurations_are_refused(name, changes, message):
    content, tensors = helpers.checkpoint(helpers.CONFIGS[name])
    content = {**content, **changes}
    if "model_type" in changes:
        content["architectures"] = ["MistralForCausalLM"]
    with pytest.raises(ValueError, match=message) as error:
        _import(content, tensors)
    assert "FOLDER" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "full"),
    [
        ({"use_sliding_window": False, "layer_types": None}, None),
        ({"layer_types": ["sliding_attention", "full_attention"]}, (1,)),
        ({"layer_types": ["sliding_attention"] * 2}, ()),
        ({"layer_types": ["full_attention"] * 2}, None),
        ({"layer_types": None, "max_window_layers": 1}, (0,)),
        ({"layer_types": None}, None),
    ],
)
def test_windows_of_qwen2(changes, full):
    """Which layers have one: by their list, else from the switch and the first layer with one."""
    config = helpers.VARIANTS["qwen2"]
    content, tensors = checkpoints.export_model(config, helpers.arrays(config))
    assert content["model_type"] == "qwen2"
    content |= {"use_sliding_window": True, "sliding_window": 8, **changes}
    config, arrays = _import(content, tensors)
    assert config.sliding_window == (None if full is None else 8)
    assert config.full_attention_layers == (full or ())
    written, _ = checkpoints.export_model(config, arrays)
    assert dataclasses.replace(_import(written, tensors)[0], source_config="{}") == (
        dataclasses.replace(config, source_config="{}")
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 2 layers"),
        ({"layer_types": ["chunked_attention"] * 2}, "each one of 'full_attention', 'sliding_atte"),
    ],
)
def test_kinds_of_layers_that_are_refused(changes, message):
    config = helpers.VARIANTS["qwen2"]
    content, tensors = checkpoints.export_model(config, helpers.arrays(config))
    with pytest.raises(ValueError, match=message):
        _import({**content, **changes}, tensors)


def test_a_scaled_output_map_is_refused():
    content, tensors = helpers.checkpoint(helpers.VARIANTS["t5 1.1"])
    content |= {"tie_word_embeddings": True, "scale_decoder_outputs": True}
    with pytest.raises(ValueError, match="scales its logits although it has an output map"):
        _import(content, tensors)


def test_missing_sizes_are_all_named():
    content = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 40}
    with pytest.raises(ValueError, match="hidden_size is missing; num_hidden_layers is missing"):
        _import(content, {})


def test_unknown_model_types_name_all_that_are_known():
    with pytest.raises(
        ValueError,
        match=r"'gptj', which is not supported; supported are bert, .*"
        r"gpt2, llama, mistral, qwen2.*; the nearest of these is gpt2",
    ):
        _import({"model_type": "gptj"}, {})


def test_models_of_images_and_text_name_their_text_model():
    content = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    with pytest.raises(
        ValueError, match=r"'gemma3', of images and text.*transformers.Gemma3ForCau"
    ):
        _import(content, {})


def test_token_ids(caplog):
    """A list stays one, an id outside the vocabulary is none; both are written as they came."""
    content, tensors = helpers.checkpoint(helpers.LLAMA)
    content |= {"eos_token_id": [7, 8], "pad_token_id": -1, "bos_token_id": None}
    with caplog.at_level(logging.INFO, logger="absl"):
        config, arrays = _import(content, tensors)
    assert (config.eos_id, config.pad_id, config.bos_id) == ((7, 8), None, None)
    assert "pad_token_id=-1 is no token of the vocabulary" in caplog.text
    written, _ = checkpoints.export_model(config, arrays)
    for key in ("eos_token_id", "pad_token_id", "bos_token_id"):
        assert written[key] == content[key]
    written, _ = checkpoints.export_model(dataclasses.replace(config, eos_id=9, pad_id=0), arrays)
    assert (written["eos_token_id"], written["pad_token_id"]) == (9, 0)
    content, tensors = helpers.checkpoint(helpers.T5)
    config, _ = _import({**content, "pad_token_id": 6, "decoder_start_token_id": None}, tensors)
    assert (config.pad_id, config.decoder_start_id) == (6, 6)


@every_kind
def test_export_keeps_the_source_and_is_brought_up_to_date(name):
    content, tensors = helpers.checkpoint(helpers.CONFIGS[name])
    source = {**content, "initializer_range": 0.01, "torch_dtype": "bfloat16", "dtype": "bfloat16"}
    config, arrays = _import(source, tensors)
    assert json.loads(config.source_config) == source
    written, again = checkpoints.export_model(config, arrays)
    assert written == {**content, "initializer_range": 0.01}
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(again[key], tensor)
        assert again[key].flags.c_contiguous


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(helpers.GPT2, norm="rms_norm"), "not gpt2: norm='rms_norm'; not llam"),
        (dataclasses.replace(helpers.GPT2, num_kv_heads=1), "not gpt2: num_kv_heads=1"),
        (dataclasses.replace(helpers.GPT2, head_size=4), "not gpt2: head_size=4"),
        (dataclasses.replace(helpers.GPT2, feed_forward_bias=False), "feed_forward_bias=False"),
        (dataclasses.replace(helpers.LLAMA, gated=False), "not llama: gated=False"),
        (
            dataclasses.replace(helpers.LLAMA, attention_out_bias=True),
            "not llama: attention_bias=False with attention_out_bias=True; not mistral: attention_",
        ),
    ],
)
def test_models_without_a_counterpart(config, message):
    with pytest.raises(ValueError, match=message):
        checkpoints.export_model(config, helpers.arrays(config))


def test_a_model_goes_to_a_family_that_computes_it():
    """Settings that LLaMA has not are never lost: another family takes the model, or none."""
    wide = dataclasses.replace(helpers.LLAMA, head_size=8)
    expected = {
        "phi3": {"rotary_fraction": 0.5},
        "mistral": {"sliding_window": 4},
        "smollm3": {"no_rope_layers": (1,)},
        "qwen3": {"qk_norm": "head"},
        "olmo2": {"qk_norm": "whole", "pre_norm": False, "output_norm": True},
    }
    for model_type, changes in expected.items():
        config = dataclasses.replace(wide, **changes)
        content, tensors = checkpoints.export_model(config, helpers.arrays(config))
        assert content["model_type"] == model_type
        again, _ = _import(json.loads(json.dumps(content)), tensors)
        assert dataclasses.replace(again, source_config="{}") == config
    for changes in ({"parallel_residual": True}, {"score_softcap": 2.0}, {"attention_scale": 0.3}):
        config = dataclasses.replace(wide, **changes)
        with pytest.raises(ValueError, match=f"not llama: {next(iter(changes))}="):
            checkpoints.export_model(config, helpers.arrays(config))


def test_adapters_and_experts_have_no_counterpart(tmp_path):
    model = models.from_arrays(helpers.GPT2, {}, helpers.arrays(helpers.GPT2))
    adapted = compression.add_adapters(model, [("layers/.*/query", {"rank": 2})], rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"has adapters.*export_huggingface\(merge\(model"):
        io.export_huggingface(adapted, tmp_path / "out")
    config = dataclasses.replace(helpers.GPT2, experts=((".*", ExpertSettings(number=2)),))
    with pytest.raises(
        ValueError, match=r"has experts in its feed-forward blocks.*save_pretrained"
    ):
        checkpoints.export_model(config, {})
    assert not (tmp_path / "out").exists()
