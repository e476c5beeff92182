"""Published settings: as many parameters as transformers counts, and its own defaults."""

import dataclasses

import pytest
from flax import nnx

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import models
from mpojax.io.hf import checkpoints
from tests.parity import reference

# Settings that the published checkpoints have besides the defaults of transformers.
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
PUBLISHED = {
    "bert-large-uncased": ("Bert", _LARGE),
    "albert-large-v2": ("Albert", _LARGE),
    "bert-base-uncased": ("Bert", {}),
    "albert-base-v2": (
        "Albert",
        {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    ),
    "distilbert-base-uncased": ("DistilBert", {}),
    "mobilebert-uncased": ("MobileBert", {"classifier_activation": False}),
    "all-MiniLM-L6-v2": (
        "Bert",
        {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_and_settings(name):
    prefix, changes = PUBLISHED[name]
    theirs = getattr(reference.transformers, f"{prefix}Config")(**changes)
    kind = getattr(reference.transformers, f"{prefix}ForSequenceClassification")
    expected = reference.num_parameters(kind, theirs)
    config = dataclasses.replace(models.PRESETS[name], num_labels=2)
    abstract = nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0)))
    assert sum(models.count_parameters(abstract).values()) == expected
    source = theirs.to_dict() | {"architectures": [kind.__name__]}
    _, imported, _ = checkpoints.read_config(source, {}, "defaults")
    assert dataclasses.replace(imported, source_config="{}") == config
