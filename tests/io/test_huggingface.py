"""Names of Hugging Face checkpoints: coverage both ways, variants, unsupported settings."""

import dataclasses
import json
import logging
import re

import numpy as np
import pytest

from mpojax import models
from mpojax.io.hf import checkpoints
from tests.io import helpers, language_helpers
from tests.io.helpers import CONFIG, SETTINGS


def _import(content, tensors):
    return checkpoints.import_model(content, tensors, "FOLDER")


def _prefixed(tensors):
    return {f"bert.{name}": tensor for name, tensor in tensors.items()}


def test_every_tensor_lands_at_its_path():
    config, arrays = _import(CONFIG, helpers.tensors())
    expected = helpers.arrays()
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
    assert dataclasses.replace(config, source_config="{}") == SETTINGS
    assert json.loads(config.source_config) == CONFIG


def test_linear_weights_are_transposed():
    tensors = helpers.tensors()
    assert tensors["encoder.layer.1.intermediate.dense.weight"].shape == (24, 12)
    _, arrays = _import(CONFIG, tensors)
    np.testing.assert_array_equal(
        arrays["layers/1/feed_forward/up/kernel"],
        tensors["encoder.layer.1.intermediate.dense.weight"].T,
    )


def test_prefix_buffers_and_old_names_are_known():
    tensors = helpers.tensors()
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): t
        for name, t in tensors.items()
    }
    assert set(renamed) != set(tensors)
    buffer = {"embeddings.position_ids": np.arange(16)[None]}
    for variant in (renamed, {**tensors, **buffer}, _prefixed({**renamed, **buffer})):
        config, arrays = _import(CONFIG, variant)
        assert config.pooling == "pooler"
        np.testing.assert_array_equal(
            arrays["layers/1/feed_forward_norm/scale"],
            helpers.arrays()["layers/1/feed_forward_norm/scale"],
        )
    with pytest.raises(ValueError, match=r"holds embeddings.LayerNorm.weight twice"):
        _import(CONFIG, {**tensors, "embeddings.LayerNorm.gamma": np.ones(12)})


WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "data parallel": lambda name: f"module.{name}",
    "lightning": lambda name: f"model.{name}",
    "sentence-transformers": lambda name: f"0.auto_model.{name}",
    "several": lambda name: f"module._orig_mod.model.{name}",
    "each layer compiled": lambda name: re.sub(
        r"(layer|layers|h|block)\.(\d+)\.", r"\1.\2._orig_mod.", name
    ),
    "sharded": lambda name: (
        f"_fsdp_wrapped_module.{name.replace('.weight', '._fsdp_wrapped_module.weight')}"
    ),
    "own class": lambda name: f"my_net.backbone.{name}",
}


@pytest.mark.parametrize("rename", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("kind", ["bert", "classifier", "gpt2", "llama", "t5"])
def test_prefixes_and_wrappers_are_left_out_and_logged(kind, rename, caplog):
    if kind in language_helpers.CONFIGS:
        content, tensors = language_helpers.checkpoint(language_helpers.CONFIGS[kind])
    else:
        settings = dataclasses.replace(SETTINGS, num_labels=3 if kind == "classifier" else None)
        content, tensors = checkpoints.export_model(settings, helpers.arrays(settings))
    config, expected = _import(content, tensors)
    with caplog.at_level(logging.INFO, logger="absl"):
        again, arrays = _import(content, {rename(name): t for name, t in tensors.items()})
    assert again == config
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
    assert re.search(r"tensors such as \S+ are read as \S+\.\S+", caplog.text)
    # What does not fit is named by the names that transformers has.
    wrong = {rename(name): t for name, t in tensors.items()} | {"criterion.weight": np.ones(1)}
    with pytest.raises(ValueError, match=r"\(1 unexpected\):\n  unexpected: criterion.weight$"):
        _import(content, wrong)


def test_two_models_in_one_file_are_not_guessed_at():
    tensors = helpers.tensors()
    both = {f"{part}.{name}": t for part in ("student", "teacher") for name, t in tensors.items()}
    with pytest.raises(ValueError, match=r"missing: embeddings\.word_embeddings\.weight") as error:
        _import(CONFIG, both)
    assert len(str(error.value).splitlines()) <= 10
    with pytest.raises(ValueError, match=r"holds \S+ twice"):
        _import(CONFIG, tensors | {f"_orig_mod.{name}": t for name, t in tensors.items()})


@pytest.mark.parametrize(
    ("head", "architecture"),
    [
        (None, "BertModel"),
        ("classifier", "BertForSequenceClassification"),
        ("span", "BertForQuestionAnswering"),
        ("masked_lm", "BertForMaskedLM"),
        ("pretraining", "BertForPreTraining"),
    ],
)
def test_configurations_without_a_class_are_read_by_the_tensors(head, architecture):
    """As many older folders of the hub have it."""
    settings = SETTINGS
    if head is not None:
        settings = dataclasses.replace(
            SETTINGS,
            num_labels=None if head == "masked_lm" else 2,
            pooling="none" if head in ("span", "masked_lm") else "pooler",
            head="span" if head == "span" else "classifier",
            masked_lm=head in ("masked_lm", "pretraining"),
        )
    content, tensors = checkpoints.export_model(settings, helpers.arrays(settings))
    assert content["architectures"] == [architecture]
    named = checkpoints.import_model(content, tensors, "FOLDER", pretraining_head=True)
    del content["architectures"]
    config, arrays = checkpoints.import_model(content, tensors, "FOLDER", pretraining_head=True)
    assert dataclasses.replace(config, source_config="{}") == dataclasses.replace(
        named[0], source_config="{}"
    )
    assert set(arrays) == set(named[1])


PRETRAINING = ["BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction"]
HEADS = ["cls.predictions.bias", "cls.predictions.decoder.weight"]


@pytest.mark.parametrize("architecture", PRETRAINING)
@pytest.mark.parametrize("has_pooler", [True, False])
@pytest.mark.parametrize("heads", [HEADS, [*HEADS, "cls.seq_relationship.weight"]])
def test_pretraining_heads_are_left_out_and_logged(architecture, heads, has_pooler, caplog):
    """The file says whether there is a pooler: published ones have it under any of these names."""
    tensors = _prefixed(helpers.tensors())
    if not has_pooler:
        tensors = {name: t for name, t in tensors.items() if "pooler" not in name}
    tensors.update({name: np.zeros(3, np.float32) for name in heads})
    content = {**CONFIG, "architectures": [architecture]}
    with caplog.at_level(logging.INFO, logger="absl"):
        config, arrays = _import(content, tensors)
    assert config.pooling == ("pooler" if has_pooler else "none")
    assert set(arrays) == set(models.array_shapes(config))
    assert all(name in caplog.text for name in heads)
    # The same tensors in a plain encoder are unexpected.
    with pytest.raises(ValueError, match=f"unexpected: {heads[0]}"):
        _import(CONFIG, tensors)


def test_an_encoder_without_pooler(caplog):
    tensors = {name: t for name, t in helpers.tensors().items() if "pooler" not in name}
    with caplog.at_level(logging.INFO, logger="absl"):
        config, _ = _import(CONFIG, tensors)
    assert config.pooling == "none"
    assert "has no pooler" in caplog.text
    half = {**tensors, "pooler.dense.bias": np.zeros(12, np.float32)}
    with pytest.raises(ValueError, match=r"missing: pooler\.dense\.weight"):
        _import(CONFIG, half)


def test_a_classifier_keeps_its_head():
    settings = dataclasses.replace(SETTINGS, num_labels=3)
    content = {
        **CONFIG,
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "classifier_dropout": 0.3,
    }
    tensors = helpers.tensors(settings)
    assert "bert.pooler.dense.weight" in tensors
    assert tensors["classifier.weight"].shape == (3, 12)
    config, arrays = _import(content, tensors)
    assert (config.num_labels, config.classifier_dropout) == (3, 0.3)
    np.testing.assert_array_equal(arrays["head/kernel"], helpers.arrays(settings)["head/kernel"])
    del content["id2label"]
    with pytest.raises(
        ValueError, match=r"shape mismatch: classifier.weight is \(3, 12\), must be \(2"
    ):
        _import(content, tensors)


def test_missing_unexpected_and_shape_mismatches_are_all_named():
    tensors = helpers.tensors()
    del tensors["encoder.layer.0.attention.self.key.bias"]
    del tensors["embeddings.word_embeddings.weight"]
    tensors["encoder.layer.2.output.dense.bias"] = np.zeros(12, np.float32)
    tensors["something.else"] = np.zeros(1, np.float32)
    tensors["encoder.layer.1.output.dense.weight"] = np.zeros((24, 12), np.float32)
    tensors["pooler.dense.bias"] = np.zeros(12, np.int64)
    with pytest.raises(ValueError, match="weights in FOLDER do not fit") as error:
        _import(CONFIG, tensors)
    assert sorted(line.strip() for line in str(error.value).splitlines()[1:]) == [
        "missing: embeddings.word_embeddings.weight",
        "missing: encoder.layer.0.attention.self.key.bias",
        "not floating point: pooler.dense.bias is int64",
        "shape mismatch: encoder.layer.1.output.dense.weight is (24, 12), must be (12, 24)",
        "unexpected: encoder.layer.2.output.dense.bias",
        "unexpected: something.else",
    ]


def test_every_name_of_the_map_is_needed():
    """Coverage: leaving out any tensor is an error that names it."""
    tensors = helpers.tensors()
    for name in tensors:
        if name.startswith("pooler."):
            continue  # Optional as a pair; see the test of encoders without pooler.
        rest = {other: t for other, t in tensors.items() if other != name}
        with pytest.raises(ValueError, match=f"missing: {name}"):
            _import(CONFIG, rest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "xlnet"},
            "model_type 'xlnet', which is not supported; supported are bert",
        ),
        (
            {"architectures": ["BertLMHeadModel"]},
            "BertLMHeadModel.*supported are BertModel, BertFor",
        ),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"hidden_act": "mish"}, r"hidden_act='mish' \(supported: gelu"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"num_attention_heads": 5}, "hidden_size=12 is not a multiple of num_heads=5"),
        ({"vocab_size": None}, "vocab_size=None must be an integer"),
    ],
)
def test_unsupported_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        _import({**CONFIG, **changes}, helpers.tensors())
    assert "FOLDER" in str(error.value)


def test_incomplete_configurations_name_every_missing_key():
    content = {key: CONFIG[key] for key in ("architectures", "model_type", "vocab_size")}
    with pytest.raises(ValueError, match="hidden_size is missing; num_hidden_layers is missing"):
        _import(content, helpers.tensors())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("relu", "relu"), ("swish", "silu")],
)
def test_activations_keep_their_name_on_export(theirs, ours):
    config, arrays = _import({**CONFIG, "hidden_act": theirs}, helpers.tensors())
    assert config.activation == ours
    content, _ = checkpoints.export_model(config, arrays)
    assert content["hidden_act"] == theirs


def test_export_keeps_the_source_and_is_brought_up_to_date():
    config, arrays = _import({**CONFIG, "initializer_range": 0.01}, helpers.tensors())
    config = dataclasses.replace(config, dropout=0.25, activation="relu")
    content, tensors = checkpoints.export_model(config, arrays)
    assert content["initializer_range"] == 0.01
    assert content["hidden_dropout_prob"] == 0.25
    assert content["hidden_act"] == "relu"
    assert content["architectures"] == ["BertModel"]
    for name, tensor in helpers.tensors().items():
        np.testing.assert_array_equal(tensors[name], tensor)
        assert tensors[name].flags.c_contiguous


def test_export_without_a_counterpart_is_refused():
    settings = dataclasses.replace(SETTINGS, num_labels=2, pooling="mean")
    with pytest.raises(ValueError, match="pooling='mean' has no counterpart in transformers"):
        checkpoints.export_model(settings, helpers.arrays(settings))
