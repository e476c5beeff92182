"""Heads of pre-training against transformers, both ways, and MPOBERT through transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import compression, io, models
from mpojax.methods import mpobert
from mpojax.methods.mpobert import start as mpobert_start
from tests.parity import reference
from tests.parity.families import FAMILIES

TOLERANCE = 1e-5

run = jax.jit(lambda model, *inputs: model(*inputs))
# Name of the logits of sentence order or succession in the outputs of transformers.
ORDER = {"bert": "seq_relationship_logits", "albert": "sop_logits"}


def _expected(theirs, inputs, name):
    outputs = reference.outputs(theirs, *inputs)
    if hasattr(outputs, "prediction_logits"):
        return outputs.prediction_logits.numpy(), outputs[ORDER[name]].numpy()
    return outputs.logits.numpy(), None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "ForPreTraining") for name in ("bert", "albert")),
        *((name, "ForMaskedLM") for name in ("bert", "albert")),
        ("roberta", "ForMaskedLM"),
        ("camembert", "ForMaskedLM"),
        ("mpnet", "ForMaskedLM"),
    ],
)
def test_logits_and_the_way_back(tmp_path, name, kind):
    family = FAMILIES[name]
    theirs = family.model(kind, seed=3)
    inputs = family.inputs()
    mask = inputs[1] == 1
    words, order = _expected(theirs, inputs, name)
    reference.quietly(theirs.save_pretrained, tmp_path / "theirs")
    ours = io.load_pretrained(tmp_path / "theirs", pretraining_head=True)
    assert isinstance(ours, models.PretrainingModel)
    found, found_order = run(ours, *map(jnp.asarray, inputs))
    np.testing.assert_allclose(found[mask], words[mask], rtol=0, atol=TOLERANCE)
    if order is None:
        assert found_order is None
    else:
        np.testing.assert_allclose(found_order[:, 0], order, rtol=0, atol=TOLERANCE)
    io.export_huggingface(ours, tmp_path / "ours")
    again = reference.load(tmp_path / "ours", type(theirs))
    np.testing.assert_array_equal(_expected(again, inputs, name)[0], words)
    # Without asking for them, the heads are left out.
    bare = io.load_pretrained(tmp_path / "theirs")
    assert not bare.config.masked_lm
    assert bare.config.num_labels is None


@pytest.mark.parametrize("has_order", [True, False])
@pytest.mark.parametrize("has_pooler", [True, False])
@pytest.mark.parametrize("kind", ["ForPreTraining", "ForMaskedLM"])
@pytest.mark.parametrize("name", ["bert", "albert"])
def test_folders_as_the_hub_has_them(tmp_path, name, kind, has_pooler, has_order):
    """Every head under either class, old names, copies of tied parameters, buffers."""
    family = FAMILIES[name]
    theirs = family.model("ForPreTraining", seed=3)
    inputs = family.inputs()
    mask = inputs[1] == 1
    words, order = _expected(theirs, inputs, name)
    reference.quietly(theirs.save_pretrained, tmp_path)
    root = "cls.predictions" if name == "bert" else "predictions"
    tensors = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): value
        for key, value in safetensors.numpy.load_file(tmp_path / "model.safetensors").items()
        if (has_pooler or "pooler" not in key)
        and (has_order or not key.startswith(("cls.seq_relationship", "sop_classifier")))
    }
    tensors[f"{root}.decoder.weight"] = tensors[f"{name}.embeddings.word_embeddings.weight"]
    tensors[f"{root}.decoder.bias"] = tensors[f"{root}.bias"]
    tensors[f"{name}.embeddings.position_ids"] = np.arange(24)[None]
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    content = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    content["architectures"] = [name.capitalize() + kind]
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    ours = io.load_pretrained(tmp_path, pretraining_head=True)
    found, found_order = run(ours, *map(jnp.asarray, inputs))
    np.testing.assert_allclose(found[mask], words[mask], rtol=0, atol=TOLERANCE)
    if has_pooler and has_order:
        np.testing.assert_allclose(found_order[:, 0], order, rtol=0, atol=TOLERANCE)
    else:
        assert found_order is None
    bare = io.load_pretrained(tmp_path)
    assert (bare.config.masked_lm, bare.config.num_labels) == (False, None)
    assert bare.config.pooling == ("pooler" if has_pooler else "none")


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_two_biases_of_the_output(tmp_path, name):
    """transformers adds that of the decoder where a file holds both."""
    family = FAMILIES[name]
    theirs = family.model("ForMaskedLM", seed=6)
    reference.quietly(theirs.save_pretrained, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    bias = "cls.predictions.bias" if name == "bert" else "predictions.bias"
    tensors[bias.replace("bias", "decoder.bias")] = tensors[bias] + 1
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    inputs = family.inputs()
    mask = inputs[1] == 1
    words = _expected(reference.load(tmp_path, type(theirs)), inputs, name)[0]
    found, _ = run(io.load_pretrained(tmp_path, pretraining_head=True), *inputs)
    np.testing.assert_allclose(found[mask], words[mask], rtol=0, atol=TOLERANCE)


def test_mpobert_goes_through_transformers_as_an_albert_of_many_groups(tmp_path):
    """Trained layers differ: transformers' ALBERT takes one group for each."""
    sizes = {"vocab_size": 60, "embedding_size": 10, "hidden_size": 24, "num_heads": 4}
    config, shapes = mpobert.settings(
        num_layers=4, groups=2, adapter_rank=2, max_positions=20, **sizes
    )
    rng = np.random.default_rng(0)
    start = models.to_arrays(mpobert_start.from_scratch(config, shapes, stddev=0.3))
    arrays = {
        name: (a + 0.2 * rng.standard_normal(a.shape)).astype(np.float32)
        for name, a in start.items()
    }
    model = models.from_arrays(config, shapes, arrays)
    inputs = FAMILIES["albert"].inputs()
    mask = inputs[1] == 1
    words, order = run(model, *map(jnp.asarray, inputs))
    io.export_huggingface(compression.merge(model), tmp_path / "m")
    theirs = reference.load(tmp_path / "m", reference.transformers.AlbertForPreTraining)
    assert theirs.config.num_hidden_groups == 4
    expected, expected_order = _expected(theirs, inputs, "albert")
    np.testing.assert_allclose(words[mask], expected[mask], rtol=0, atol=2 * TOLERANCE)
    np.testing.assert_allclose(order[:, 0], expected_order, rtol=0, atol=2 * TOLERANCE)


def test_an_albert_of_transformers_teaches_an_mpobert(tmp_path):
    family = FAMILIES["albert"]
    theirs = family.model("ForPreTraining", seed=4)
    reference.quietly(theirs.save_pretrained, tmp_path / "theirs")
    teacher = io.load_pretrained(tmp_path / "theirs", pretraining_head=True)
    given = teacher.config
    config, shapes = mpobert.settings(
        num_layers=given.num_layers,
        hidden_size=given.hidden_size,
        vocab_size=given.vocab_size,
        embedding_size=given.embedding_size,
        num_heads=given.num_heads,
        intermediate_size=given.intermediate_size,
        max_positions=given.max_positions,
        activation=given.activation,
    )
    model = mpobert_start.from_teacher(teacher, config, shapes)
    inputs = family.inputs()
    mask = inputs[1] == 1
    words, order = _expected(theirs, inputs, "albert")
    found, found_order = run(model, *map(jnp.asarray, inputs))
    np.testing.assert_allclose(found[mask], words[mask], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found_order[:, 0], order, rtol=0, atol=1e-4)


def test_untied_output_maps_are_refused(tmp_path):
    theirs = FAMILIES["bert"].model("ForMaskedLM", seed=5, tie_word_embeddings=False)
    reference.quietly(theirs.save_pretrained, tmp_path / "theirs")
    with pytest.raises(ValueError, match="only tied output maps are supported"):
        io.load_pretrained(tmp_path / "theirs", pretraining_head=True)
