"""Published language models: as many parameters as transformers counts, and the same settings."""

import dataclasses

import pytest
from flax import nnx

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import models
from mpojax.io.hf import checkpoints
from tests.parity import reference, test_presets

_T5 = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}
# Settings that the published checkpoints have besides the defaults of transformers.
PUBLISHED = {
    "t5-base": ("T5ForConditionalGeneration", _T5),
    "t5-large": (
        "T5ForConditionalGeneration",
        _T5 | {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
    ),
    "gpt2": ("GPT2LMHeadModel", {}),
    "gpt2-medium": ("GPT2LMHeadModel", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "SmolLM2-135M": (
        "LlamaForCausalLM",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_and_settings(name):
    kind, changes = PUBLISHED[name]
    kind = getattr(reference.transformers, kind)
    theirs = kind.config_class(**changes)
    expected = reference.num_parameters(kind, theirs)
    config = models.PRESETS[name]
    abstract = nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0)))
    assert sum(models.count_parameters(abstract).values()) == expected
    source = theirs.to_dict() | {"tie_word_embeddings": True}
    _, imported, _ = checkpoints.read_config(source, {}, "defaults")
    assert dataclasses.replace(imported, source_config="{}") == config


def test_every_preset_is_checked():
    assert {*PUBLISHED, *test_presets.PUBLISHED} == {*models.PRESETS}
