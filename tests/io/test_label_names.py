"""Names of classes: kept from load to export, replaced with the head."""

import json

import pytest
from flax import nnx

from mpojax import io, models
from tests.io import helpers

NAMES = ("contradiction", "entailment", "neutral")
CLASSIFIER = {
    "architectures": ["BertForSequenceClassification"],
    "id2label": {str(i): name for i, name in enumerate(NAMES)},
    "label2id": {name: i for i, name in enumerate(NAMES)},
    "problem_type": "single_label_classification",
}


@pytest.fixture
def loaded(tmp_path):
    """A classifier of the hub with classes of its own."""
    settings = models.EncoderConfig(**{**vars(helpers.SETTINGS), "num_labels": len(NAMES)})
    content = helpers.CONFIG | CLASSIFIER
    helpers.write(tmp_path / "hub", content, helpers.tensors(settings))
    return io.load_pretrained(tmp_path / "hub")


def exported(model, folder):
    io.export_huggingface(model, folder)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {name: content[name] for name in CLASSIFIER if name in content}


def test_a_loaded_classifier_keeps_its_own(loaded, tmp_path):
    assert loaded.config.label_names == NAMES
    io.save_pretrained(loaded, tmp_path / "own")
    saved = json.loads((tmp_path / "own" / "config.json").read_text(encoding="utf-8"))
    assert saved["mpojax"]["label_names"] == list(NAMES)
    again = io.load_pretrained(tmp_path / "own")
    assert again.config == loaded.config
    assert exported(again, tmp_path / "export") == CLASSIFIER


def test_a_fresh_head_has_its_own(loaded, tmp_path):
    names = ("bug", "feature", "question")
    model = models.with_head(loaded, 3, label_names=names, rngs=nnx.Rngs(0))
    content = exported(model, tmp_path / "named")
    assert content["id2label"] == {"0": "bug", "1": "feature", "2": "question"}
    assert content["label2id"] == {"bug": 0, "feature": 1, "question": 2}
    assert "problem_type" not in content
    content = exported(models.with_head(loaded, 3, rngs=nnx.Rngs(0)), tmp_path / "bare")
    assert content["id2label"] == {str(i): f"LABEL_{i}" for i in range(3)}
    assert "problem_type" not in content


def test_a_regression_says_so(loaded, tmp_path):
    content = exported(models.with_head(loaded, 1, rngs=nnx.Rngs(0)), tmp_path / "export")
    assert content["problem_type"] == "regression"
    assert content["id2label"] == {"0": "LABEL_0"}


def test_columns_keep_their_names(loaded, tmp_path):
    cut = models.head_columns(loaded, 1, 3)
    assert cut.config.label_names == NAMES[1:]
    assert exported(cut, tmp_path / "export")["id2label"] == {"0": "entailment", "1": "neutral"}


def test_the_names_go_to_another_type_of_model(tmp_path):
    other = {"token_types": 0, "pooler_activation": "relu"}  # those of DistilBERT
    settings = models.EncoderConfig(**{**vars(helpers.SETTINGS), **other})
    model = models.with_head(
        helpers.model(settings), 2, label_names=("no", "yes"), rngs=nnx.Rngs(0)
    )
    io.export_huggingface(model, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (content["model_type"], content["id2label"]) == ("distilbert", {"0": "no", "1": "yes"})


def test_transformers_reads_them(loaded, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = models.with_head(loaded, 2, label_names=("no", "yes"), rngs=nnx.Rngs(0))
    io.export_huggingface(model, tmp_path / "two")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "two")
    assert (config.num_labels, config.id2label) == (2, {0: "no", 1: "yes"})
    io.export_huggingface(models.with_head(loaded, 1, rngs=nnx.Rngs(0)), tmp_path / "one")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "one")
    assert (config.num_labels, config.problem_type) == (1, "regression")
