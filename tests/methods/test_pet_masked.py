"""Optimizers that leave out entries: dropped ones do not move, and a mask may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import training
from mpojax.methods import moments
from mpojax.methods.pet import search

PARAMS = {"a": jnp.arange(1.0, 7.0).reshape(2, 3), "b": jnp.ones(4)}
MASKS = {"a": jnp.array([[1.0, 0, 1], [0, 1, 0]]), "b": jnp.zeros(4)}
ROLES = {"a": "other", "b": "other"}


def make(masks=None, **config):
    settings = {"name": "adamw", "learning_rate": 0.1, "schedule": "constant"} | config
    return search.masked(training.make_optimizer(settings, ROLES, 10), masks)


def gradients(step):
    return jax.tree.map(lambda p: jnp.cos(p + step), PARAMS)


def run(optimizer, steps=3, params=PARAMS):
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = optimizer.update(gradients(step), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


def test_all_ones_change_nothing():
    plain = training.make_optimizer(
        {"name": "adamw", "learning_rate": 0.1, "schedule": "constant"}, ROLES, 10
    )
    for one, other in zip(*map(jax.tree.leaves, (run(make())[0], run(plain)[0])), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_dropped_entries_stay_and_count_for_nothing(weight_decay):
    params, state = run(make(MASKS, weight_decay=weight_decay, clip_norm=0.5))
    kept = np.asarray(MASKS["a"], bool)
    np.testing.assert_array_equal(params["b"], PARAMS["b"])
    np.testing.assert_array_equal(params["a"][~kept], PARAMS["a"][~kept])
    assert np.all(np.asarray(params["a"])[kept] != np.asarray(PARAMS["a"])[kept])
    seen = [tree["b"] for tree, _ in moments.trees(state)]
    assert len(seen) == 2
    assert not any(np.any(moment) for moment in seen)


def test_the_learning_rate_is_that_of_the_optimizer():
    optimizer = make(schedule="linear")
    assert float(optimizer.learning_rate(run(optimizer, 5)[1])) == pytest.approx(0.05)


def test_a_changed_mask_is_not_compiled_again():
    optimizer, traces = make(), []

    @jax.jit
    def step(params, state):
        traces.append(1)
        return optimizer.update(gradients(0), state, params)

    state = optimizer.init(PARAMS)
    step(PARAMS, state)
    updates, _ = step(PARAMS, state._replace(mask=MASKS))
    assert len(traces) == 1
    np.testing.assert_array_equal(updates["b"], np.zeros(4))


def test_an_optimizer_without_moments_is_refused():
    optimizer = make(name="sgd", beta1=0.0)
    with pytest.raises(ValueError, match="use adam or adamw"):
        moments.trees(optimizer.init(PARAMS))
