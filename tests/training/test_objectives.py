"""Losses and evaluators of the kinds of tasks, with a model of a few lines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import data, training
from mpojax.training import objectives


class TinyModel(nnx.Module):
    """Logits (B, outputs) from the sum of a row's token vectors; noise with a key."""

    def __init__(self, outputs: int, vocabulary: int = 40):
        self.table = nnx.Param(
            jax.random.normal(jax.random.key(outputs), (vocabulary, outputs), jnp.float32)
        )

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None, dropout_key=None):
        logits = jnp.sum(self.table[...][input_ids] * attention_mask[..., None], axis=1)
        if dropout_key is not None:
            logits = logits + jax.random.normal(dropout_key, logits.shape, logits.dtype)
        return logits


def arrays(labels):
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 40, (len(labels), 6)).astype(np.int32)
    mask = (np.arange(6)[None] < rng.integers(2, 7, len(labels))[:, None]).astype(np.float32)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def reference(model, batch):
    table = np.float64(model.table[...])
    return (table[batch["input_ids"]] * batch["attention_mask"][..., None]).sum(1)


KEY = jax.random.key(0)


def test_classification():
    model, batch = TinyModel(3), arrays(np.arange(20, dtype=np.int32) % 3)
    loss_fn = training.objective("classification")
    assert loss_fn is objectives.classification_loss
    loss, noisy = (loss_fn(lambda *a, k=k: model(*a[:3], k), batch, KEY) for k in (None, KEY))
    logits = reference(model, batch)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(20), batch["labels"]]
    np.testing.assert_allclose(loss[0], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss[1]["accuracy"], (logits.argmax(1) == batch["labels"]).mean())
    np.testing.assert_array_equal(loss_fn(model, batch, KEY)[0], noisy[0])  # the key is passed on
    assert noisy[0] != loss[0]


def test_regression():
    model, batch = TinyModel(1), arrays(np.linspace(0, 5, 20, dtype=np.float32))
    loss, metrics = training.objective("regression")(lambda *a: model(*a[:3]), batch, KEY)
    errors = reference(model, batch)[:, 0] - batch["labels"]
    np.testing.assert_allclose(loss, np.square(errors).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["mean_absolute_error"], np.abs(errors).mean(), rtol=1e-5)
    with pytest.raises(ValueError, match=r"one output, logits \(B, 1\); got shape \(20, 3\)"):
        training.objective("regression")(TinyModel(3), batch, KEY)


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"kind='ranking' must be one of 'class"):
        training.objective("ranking")


def task(kind, metrics=(), labels=None):
    names = ("no", "yes") if kind == "classification" else ()
    split = data.Split(["x"] * 21, labels)
    return data.TextTask("mine", {"valid": split}, names, kind, metrics, "valid")


def test_evaluator_of_a_classification():
    labels = np.arange(21, dtype=np.int32) % 2
    model, batch = TinyModel(2), arrays(labels)
    evaluator = training.evaluator(task("classification", ("matthews", "f1", "accuracy"), labels))
    found = evaluator(model, data.EvalData(batch, 8, lengths=(3,)))
    predictions = reference(model, batch).argmax(1)
    assert list(found) == ["matthews", "f1", "accuracy"]
    assert found["accuracy"] == np.mean(predictions == labels)
    hits = np.sum(predictions & labels)
    assert found["f1"] == 2 * hits / (predictions.sum() + labels.sum())
    assert found["matthews"] == pytest.approx(np.corrcoef(predictions, labels)[0, 1])


def test_evaluator_of_a_regression_does_not_depend_on_the_batch_size():
    labels = np.linspace(0, 5, 21, dtype=np.float32)
    model, batch = TinyModel(1), arrays(labels)
    evaluator = training.evaluator(task("regression", labels=labels))
    found = [evaluator(model, data.EvalData(batch, size)) for size in (8, 16)]
    assert found[0] == found[1]
    assert list(found[0]) == ["spearman", "pearson"]
    expected = np.corrcoef(reference(model, batch)[:, 0], labels)[0, 1]
    assert found[0]["pearson"] == pytest.approx(expected, abs=1e-6)


def test_evaluator_needs_labels():
    with pytest.raises(ValueError, match=r"split 'valid' of task 'mine' has no labels"):
        training.evaluator(task("regression"))
    with pytest.raises(ValueError, match=r"no split 'dev'; has \['valid'\]"):
        training.evaluator(task("regression"), "dev")
    with pytest.raises(ValueError, match=r"split 'given as examples' of task 'mine'"):
        training.evaluator(task("regression"), data.Split(["x"], None))


@pytest.mark.parametrize("kind", ["classification", "regression", "span"])
def test_training_needs_labels(kind):
    batch = arrays(np.zeros(4, np.int32))
    del batch["labels"]
    logits = {"classification": (4, 2), "regression": (4, 1), "span": (4, 6, 2)}[kind]
    with pytest.raises(ValueError, match=r"the batch has no labels, only \['attention_mask', 'in"):
        training.objective(kind)(lambda *unused: jnp.zeros(logits), batch, KEY)
