"""What a student learns from its teacher, against sums by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax.methods.opdf import distillation
from tests.models import small
from tests.models.test_kinds import IDS, MASK

RNG = np.random.default_rng(0)
ONE, OTHER = (jnp.asarray(RNG.standard_normal((4, 3)), jnp.float32) for _ in range(2))


def softmax(x):
    e = np.exp(np.asarray(x, np.float64))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distance_of_probabilities(temperature):
    q, p = softmax(ONE / temperature), softmax(OTHER / temperature)
    expected = np.mean(np.sum(p * (np.log(p) - np.log(q)), -1))
    found = distillation.logit_distance(ONE, OTHER, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(float(distillation.logit_distance(ONE, ONE))) < 1e-7
    slope = jax.jit(jax.grad(lambda x: distillation.logit_distance(x, OTHER, temperature)))(ONE)
    np.testing.assert_allclose(slope, (q - p) / len(p) / temperature, rtol=1e-4, atol=1e-7)


def test_distance_of_hidden_states_leaves_padding_out():
    one, other = (RNG.standard_normal((2, 3, 4)).astype(np.float32) for _ in range(2))
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    expected = np.sum((one - other)[mask == 1] ** 2) / np.sum(other[mask == 1] ** 2)
    found = distillation.hidden_distance(jnp.asarray(one), jnp.asarray(other), jnp.asarray(mask))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="must be as wide as its teacher"):
        distillation.hidden_distance(jnp.asarray(one), jnp.asarray(other[..., :2]), None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be a finite number above 0"),
        ({"task": -1.0}, "task=-1.0 must be a finite number of at least 0"),
        ({"logits": 0.0}, "all weights are zero"),
    ],
)
def test_weights(fields, message):
    with pytest.raises(ValueError, match=message):
        distillation.Weights(**fields)


def test_divergence_of_attention_leaves_padding_out():
    one, other = (softmax(RNG.standard_normal((2, 1, 3, 4, 4))) for _ in range(2))
    mask = np.array([[1, 1, 1, 0]])
    expected = np.mean(np.sum(other * np.log(other / one), -1)[..., :3])
    found = distillation.attention_distance(
        *(jnp.asarray(x, jnp.float32) for x in (one, other)), jnp.asarray(mask)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="as many heads as its teacher"):
        distillation.attention_distance(
            jnp.zeros((1, 1, 2, 4, 4)), jnp.zeros((1, 1, 3, 4, 4)), None
        )


def pair(seed=0):
    config = dataclasses.replace(small.BERT, num_labels=2, dropout=0.0, attention_dropout=0.0)
    deep = dataclasses.replace(config, num_layers=6)
    student, teacher = (small.random_model(c, seed=seed + n) for n, c in enumerate((config, deep)))
    return distillation.Pair(student, teacher)


BATCH = {"input_ids": IDS, "attention_mask": MASK, "labels": jnp.asarray([0, 1])}


def test_mapped_layers_are_compared():
    both, layer_map = pair(), (1, 3, 5)
    weights = distillation.Weights(logits=0.0, layers=2.0, attention=3.0)
    loss = distillation.distillation_loss(weights, layer_map=layer_map)
    total, terms = jax.jit(loss)(both, BATCH, jax.random.key(0))
    states = both.student.states(IDS, MASK, attention=True)
    goals = both.teacher.states(IDS, MASK, attention=True)
    parts = [
        distillation.hidden_distance(states[1][k], goals[1][t], MASK)
        for k, t in enumerate(layer_map)
    ]
    np.testing.assert_allclose(terms["layers"], np.mean(parts), rtol=1e-5)
    attention = distillation.attention_distance(states[2], goals[2][np.array(layer_map)], MASK)
    np.testing.assert_allclose(terms["attention"], attention, rtol=1e-5)
    np.testing.assert_allclose(total, 2 * np.mean(parts) + 3 * attention, rtol=1e-5)
    with pytest.raises(ValueError, match="need a layer_map"):
        distillation.distillation_loss(weights)


def test_a_regression_is_compared_by_its_outputs():
    config = dataclasses.replace(small.BERT, num_labels=1, dropout=0.0, attention_dropout=0.0)
    both = distillation.Pair(*(small.random_model(config, seed=seed) for seed in (0, 1)))
    loss = distillation.distillation_loss(distillation.Weights(logits=2.0, task=1.0))
    labels = jnp.asarray([0.5, 2.0])
    total, terms = loss(both, BATCH | {"labels": labels}, jax.random.key(0))
    own, theirs = both.student(IDS, MASK), both.teacher(IDS, MASK)
    expected = 2 * jnp.mean((own - theirs) ** 2) + jnp.mean((own[:, 0] - labels) ** 2)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert "mean_absolute_error" in terms
