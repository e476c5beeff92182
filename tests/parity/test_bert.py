"""Hidden states and logits equal those of transformers, on random BERTs and on the real MiniLM."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tokenizers

from mpojax import io, models
from tests.parity import reference

TOLERANCE = 1e-5
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "A film that is clever, moving and a little too long .",
    "Why?",
    "Matrix product operators write one large matrix as a chain of small tensors, which physicists "
    "have used for decades to describe quantum states with little entanglement.",
    "unbelievably, naïve tokenization of 'weird' words -- e.g. Zürich, 東京, 3.14159 -- works!",
    "",
]

run = jax.jit(lambda model, *inputs: model(*inputs))


def _bert(seed=0, **changes):
    settings = {
        "vocab_size": 60,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 20,
        "type_vocab_size": 2,
        **changes,
    }
    return reference.transformers.BertConfig(**settings)


def _inputs(seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 60, (3, 9))
    mask = np.ones((3, 9), int)
    mask[1, 5:] = 0
    mask[2, 1:] = 0
    return np.where(mask == 1, ids, 0), mask, rng.integers(0, 2, (3, 9))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
        {"hidden_act": "relu", "num_attention_heads": 1},
        {"hidden_act": "silu", "num_hidden_layers": 1, "type_vocab_size": 3},
    ],
    ids=["gelu", "gelu_new", "relu", "silu"],
)
def test_random_encoders(tmp_path, changes):
    theirs = reference.randomize(reference.transformers.BertModel(_bert(**changes)), seed=1)
    reference.quietly(theirs.save_pretrained, tmp_path)
    ours = io.load_pretrained(tmp_path)
    ids, mask, types = _inputs()
    expected = reference.outputs(theirs, ids, mask, types)
    hidden = np.asarray(run(ours, jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(types)))
    real = mask == 1
    np.testing.assert_allclose(
        hidden[real], expected.last_hidden_state.numpy()[real], rtol=0, atol=TOLERANCE
    )
    pooled = models.pool(ours, jnp.asarray(hidden), jnp.asarray(mask))
    np.testing.assert_allclose(pooled, expected.pooler_output.numpy(), rtol=0, atol=TOLERANCE)


def test_random_classifier_both_ways(tmp_path):
    kind = reference.transformers.BertForSequenceClassification
    theirs = reference.randomize(kind(_bert(num_labels=5)), seed=2)
    reference.quietly(theirs.save_pretrained, tmp_path / "theirs")
    ours = io.load_pretrained(tmp_path / "theirs")
    ids, mask, types = _inputs(1)
    expected = reference.outputs(theirs, ids, mask, types).logits.numpy()
    logits = run(ours, jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(types))
    assert logits.shape == (3, 5)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)
    io.export_huggingface(ours, tmp_path / "ours")
    again = reference.load(tmp_path / "ours", kind)
    np.testing.assert_array_equal(reference.outputs(again, ids, mask, types).logits, expected)
    assert again.config.id2label == theirs.config.id2label


@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction"]
)
def test_encoders_of_pretraining_models(tmp_path, name):
    theirs = reference.randomize(getattr(reference.transformers, name)(_bert()), seed=3)
    reference.quietly(theirs.save_pretrained, tmp_path)
    ours = io.load_pretrained(tmp_path)
    ids, mask, types = _inputs(2)
    expected = reference.outputs(theirs.bert, ids, mask, types).last_hidden_state.numpy()
    hidden = np.asarray(run(ours, jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(types)))
    np.testing.assert_allclose(hidden[mask == 1], expected[mask == 1], rtol=0, atol=TOLERANCE)


def test_sharded_checkpoints(tmp_path):
    theirs = reference.randomize(reference.transformers.BertModel(_bert()), seed=4)
    reference.quietly(theirs.save_pretrained, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ours = io.load_pretrained(tmp_path)
    ids, mask, types = _inputs(3)
    expected = reference.outputs(theirs, ids, mask, types).last_hidden_state.numpy()
    hidden = np.asarray(run(ours, jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(types)))
    np.testing.assert_allclose(hidden[mask == 1], expected[mask == 1], rtol=0, atol=TOLERANCE)


def test_a_fresh_classifier_exports(tmp_path):
    config = models.EncoderConfig(
        vocab_size=60,
        hidden_size=24,
        num_layers=2,
        num_heads=4,
        intermediate_size=48,
        max_positions=20,
        num_labels=3,
        activation="gelu_tanh",
        pad_id=1,
    )
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32) * 0.3
        for name, shape in models.array_shapes(config).items()
    }
    ours = models.from_arrays(config, {}, arrays)
    io.export_huggingface(ours, tmp_path)
    theirs = reference.load(tmp_path, reference.transformers.BertForSequenceClassification)
    assert theirs.config.pad_token_id == 1
    ids, mask, types = _inputs(4)
    expected = reference.outputs(theirs, ids, mask, types).logits.numpy()
    logits = run(ours, jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(types))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def sentences(minilm_dir):
    """Token ids and mask of real sentences, padded to the longest."""
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(SENTENCES)
    ids = np.array([e.ids for e in encoded])
    mask = np.array([e.attention_mask for e in encoded])
    assert mask.min() == 0
    return ids, mask


def test_minilm_hidden_states(minilm_dir, sentences):
    ids, mask = sentences
    ours = io.load_pretrained(minilm_dir)
    assert sum(models.count_parameters(ours).values()) == 22_713_216
    theirs = reference.load(minilm_dir)
    expected = reference.outputs(theirs, ids, mask)
    hidden = np.asarray(run(ours, jnp.asarray(ids), jnp.asarray(mask)))
    real = mask == 1
    difference = np.abs(hidden[real] - expected.last_hidden_state.numpy()[real]).max()
    assert difference <= TOLERANCE
    pooled = models.pool(ours, jnp.asarray(hidden), jnp.asarray(mask))
    np.testing.assert_allclose(pooled, expected.pooler_output.numpy(), rtol=0, atol=TOLERANCE)
    # Mean pooling ignores the padding, as the sentence embedding of this model does.
    weights = mask[..., None] / mask.sum(1)[:, None, None]
    by_mean = models.reconfigure(_without_pooler(ours), pooling="mean")
    vectors = models.pool(by_mean, jnp.asarray(hidden), jnp.asarray(mask))
    np.testing.assert_allclose(vectors, (hidden * weights).sum(1), rtol=0, atol=TOLERANCE)


def _without_pooler(model):
    arrays = {n: a for n, a in models.to_arrays(model).items() if not n.startswith("pooler/")}
    return models.from_arrays(dataclasses.replace(model.config, pooling="none"), {}, arrays)
