"""What a student learns from its teacher, against sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax.training import distillation

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
    slope = jax.grad(lambda x: distillation.logit_distance(x, OTHER, temperature))(ONE)
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
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"task": -1.0}, "task=-1.0 must not be negative"),
        ({"logits": 0.0}, "all weights are zero"),
    ],
)
def test_weights(fields, message):
    with pytest.raises(ValueError, match=message):
        distillation.Weights(**fields)
