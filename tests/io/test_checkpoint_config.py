"""Configurations of each architecture: what is refused, what an export writes, own old folders."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from mpojax import compression, io, models
from mpojax.io.hf import checkpoints, names
from mpojax.io.hf.encoders import EncoderFamily
from mpojax.models import arrays as arrays_lib
from tests.io import helpers
from tests.models import small

ALBERT = {
    "architectures": ["AlbertModel"],
    "model_type": "albert",
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 12,
    "embedding_size": 8,
}
MOBILEBERT = {
    "architectures": ["MobileBertModel"],
    "model_type": "mobilebert",
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 12,
    "embedding_size": 6,
    "intra_bottleneck_size": 8,
    "num_feedforward_networks": 2,
}


ENCODERS = [family for family in checkpoints.FAMILIES.values() if isinstance(family, EncoderFamily)]


@pytest.mark.parametrize(
    ("family", "kind"),
    [(f, kind) for f in ENCODERS for kind in ("none", *models.HEADS) if kind in f.classes],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_export_and_import_are_inverse(family, kind, monkeypatch):
    """For every architecture and head: names one to one, arrays and settings equal."""
    monkeypatch.setattr(arrays_lib, "_MAX_LINES", 1000)
    has_pooler = kind == "classifier" or (kind == "none" and family.has_pooler)
    config = dataclasses.replace(
        small.KINDS.get(family.model_type, small.ROBERTA),
        source_config=json.dumps({"model_type": family.model_type}),
        pooling="pooler" if has_pooler else "none",
        num_labels={"none": None, "span": 2}.get(kind, 3),
        head="classifier" if kind == "none" else kind,
        classifier_dropout=0.25 if kind in family.head_dropout else None,
    )
    arrays = helpers.arrays(config)
    content, tensors = checkpoints.export_model(config, arrays)
    assert content["architectures"] == [family.classes[kind]]
    assert content["model_type"] == family.model_type
    assert len(tensors) <= len(arrays)  # one tensor may hold several arrays
    prefixed = [name for name in tensors if name.startswith(family.prefix)]
    outside = set(names.tensors_of(family.heads.get(kind, {}), {}, config, arrays))
    assert set(tensors) - set(prefixed) == (set(tensors) if kind == "none" else outside)
    again, read = checkpoints.import_model(content, tensors, "FOLDER")
    assert dataclasses.replace(again, source_config=config.source_config) == config
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
    # Every tensor is needed (a pooler alone may be absent), and none may be left over.
    with pytest.raises(ValueError, match="weights in FOLDER do not fit") as error:
        checkpoints.import_model(content, {"other": np.zeros(1)}, "FOLDER")
    needed = {name.removeprefix(family.prefix) for name in tensors}
    if kind == "none":
        needed = {name for name in needed if not name.startswith("pooler.")}
    named = {line.strip().removeprefix("missing: ") for line in str(error.value).split("\n")[1:]}
    assert named == {*needed, "unexpected: other"}


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (ALBERT, {"num_hidden_groups": 2}, "cannot be divided into layer_groups=2"),
        (ALBERT, {"inner_group_num": 2}, r"inner_group_num=2 \(supported: 1\)"),
        (ALBERT, {"architectures": ["AlbertForMultipleChoice"]}, "AlbertForMultiple.*supported"),
        (ALBERT, {"architectures": ["BertModel"]}, "BertModel.*supported are AlbertModel, "),
        (ALBERT, {"embedding_size": 0}, "embedding_size=0 must be an integer of at least 1"),
        (MOBILEBERT, {"use_bottleneck": False}, r"use_bottleneck=False \(supported: True\)"),
        (MOBILEBERT, {"key_query_shared_bottleneck": False}, "must differ"),
        (MOBILEBERT, {"use_bottleneck_attention": True}, "must differ"),
        (
            MOBILEBERT,
            {"trigram_input": False, "embedding_size": 16},
            "trigram_input=False needs an embedding_size other than hidden_size",
        ),
        (MOBILEBERT, {"normalization_type": "layer_norm"}, "needs layer_norm_eps=1e-05"),
        (MOBILEBERT, {"normalization_type": "rms"}, "normalization_type='rms' must be one of"),
        (MOBILEBERT, {"hidden_act": "mish"}, r"hidden_act='mish' \(supported"),
    ],
)
def test_unsupported_configurations(source, changes, message):
    kind = small.KINDS[source["model_type"]]
    _, tensors = checkpoints.export_model(kind, helpers.arrays(kind))
    with pytest.raises(ValueError, match=message) as error:
        checkpoints.import_model({**source, **changes}, tensors, "FOLDER")
    assert "FOLDER" in str(error.value)


def test_absent_keys_have_the_defaults_of_their_architecture():
    _, tensors = checkpoints.export_model(small.ALBERT, helpers.arrays(small.ALBERT))
    config, _ = checkpoints.import_model(ALBERT, tensors, "FOLDER")
    assert config.activation == "gelu_tanh"
    assert (config.dropout, config.attention_dropout, config.classifier_dropout) == (0, 0, 0.1)
    _, tensors = checkpoints.export_model(small.MOBILEBERT, helpers.arrays(small.MOBILEBERT))
    config, _ = checkpoints.import_model(MOBILEBERT, tensors, "FOLDER")
    assert (config.activation, config.norm, config.trigram_input) == ("relu", "no_norm", True)


@pytest.mark.parametrize("num_labels", [None, 3])
def test_a_pooler_without_weights_is_the_first_token(num_labels, caplog):
    """MobileBERT as published."""
    config = dataclasses.replace(small.MOBILEBERT, pooling="first", num_labels=num_labels)
    content, tensors = checkpoints.export_model(config, helpers.arrays(config))
    assert content["classifier_activation"] is False
    unused = {"mobilebert.pooler.dense.bias": np.zeros(16, np.float32)}
    with caplog.at_level(logging.INFO, logger="absl"):
        again, _ = checkpoints.import_model(content, {**tensors, **unused}, "FOLDER")
    assert dataclasses.replace(again, source_config="{}") == config
    assert "left out the pooler" in caplog.text
    content, _ = checkpoints.export_model(small.MOBILEBERT, helpers.arrays(small.MOBILEBERT))
    assert content["classifier_activation"] is True


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            dataclasses.replace(small.BERT, layer_groups=1),
            "not bert: layer_groups=1; not albert: embedding_size=None",
        ),
        (
            dataclasses.replace(small.DISTILBERT, embedding_size=8),
            "not distilbert: embedding_size=8",
        ),
        (dataclasses.replace(small.BERT, pooler_activation="relu"), "pooler_activation='relu'"),
        (small.DISTILBERT, "pooler/bias, pooler/kernel have no counterpart in DistilBertModel"),
        (
            dataclasses.replace(small.DISTILBERT, num_labels=2, pooling="mean"),
            "pooling='mean' has no counterpart.*DistilBertFor.*always has pooling='pooler'",
        ),
        (
            dataclasses.replace(small.MOBILEBERT, norm="layer_norm"),
            "normalization_type='layer_norm' needs layer_norm_eps=1e-05",
        ),
    ],
)
def test_models_without_a_counterpart(config, message):
    with pytest.raises(ValueError, match=message):
        checkpoints.export_model(config, helpers.arrays(config))


def test_a_pooler_beside_a_span_head_is_left_out(caplog):
    """Old question answering checkpoints carry the pooler of their encoder."""
    config = dataclasses.replace(helpers.SETTINGS, num_labels=2, head="span", pooling="none")
    content, tensors = checkpoints.export_model(config, helpers.arrays(config))
    tensors["bert.pooler.dense.weight"] = np.zeros((12, 12), np.float32)
    with caplog.at_level(logging.INFO, logger="absl"):
        again, arrays = checkpoints.import_model(content, tensors, "FOLDER")
    assert again.pooling == "none"
    assert set(arrays) == set(helpers.arrays(config))
    assert "left out the pooler" in caplog.text
    content = {**content, "id2label": {str(i): str(i) for i in range(3)}}
    with pytest.raises(ValueError, match="num_labels=3 must be 2 for head='span'"):
        checkpoints.import_model(content, tensors, "FOLDER")


def test_a_changed_model_forgets_the_configuration_of_another_type():
    """An encoder of BERT's settings and shape without token types goes out as a DistilBERT."""
    config, _ = checkpoints.import_model(helpers.CONFIG, helpers.tensors(), "FOLDER")
    other = dataclasses.replace(config, token_types=0, pooling="none")
    content, _ = checkpoints.export_model(other, helpers.arrays(other))
    assert content["model_type"] == "distilbert"
    assert "hidden_size" not in content


# Fields of the settings in folders of format version 1.
FIELDS_OF_VERSION_1 = (
    *("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size"),
    *("max_positions", "token_types", "activation", "norm_eps", "pad_id", "dropout"),
    *("attention_dropout", "classifier_dropout", "pooling", "num_labels", "remat", "dtype"),
    "source_config",
)


def test_folders_of_format_version_1_load(tmp_path):
    model, _ = compression.compress(helpers.model(), [(".*/query", {"bond": 3})])
    io.save_pretrained(model, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    encoder = content["mpojax"]["encoder"]
    content["mpojax"]["encoder"] = {name: encoder[name] for name in FIELDS_OF_VERSION_1}
    content["mpojax"]["format_version"] = 1
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    again = io.load_pretrained(tmp_path)
    assert again.config == model.config
    for name, array in models.to_arrays(model).items():
        np.testing.assert_array_equal(models.to_arrays(again)[name], array)


def test_folders_of_format_version_6_load(tmp_path):
    model = models.reconfigure(helpers.model(), scan_boundaries=(1,))
    io.save_pretrained(model, tmp_path)
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    old = text.replace('"scan_boundaries"', '"stack_breaks"').replace(
        '"format_version": 10', '"format_version": 6'
    )
    assert old.count("stack_breaks") == 1
    assert '"format_version": 6' in old
    (tmp_path / "config.json").write_text(old, encoding="utf-8")
    assert io.load_pretrained(tmp_path).config == model.config
