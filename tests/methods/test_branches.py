"""Sums of matrices: what they start as, what they learn, and gradients that learn the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import models, training
from mpojax.methods import branches
from mpojax.methods.branches import expanded as expanded_lib
from mpojax.training import state as state_lib
from tests.methods.test_deep_lora import BATCH, CONFIG, LOSS, inputs

SGD = {"name": "sgd", "learning_rate": 0.1, "beta1": 0.9, "clip_norm": 0.0, "weight_decay": 0.1}
SGD |= {"schedule": "constant", "no_decay": ()}
TWO = {"scales": (0.8, 1.5, 0.5), "groups": (1, 4, 8), "matrices": "layers/.*/(query|up)"}


@pytest.fixture(scope="module")
def model():
    return models.with_head(models.build(CONFIG, rngs=nnx.Rngs(0)), 2, rngs=nnx.Rngs(1))


def trained(start, loss, wrap=lambda optimizer: optimizer, steps=5, seed=0, fields=SGD):
    """A model after some steps."""
    optimizer = wrap(training.make_optimizer(fields, training.roles(start), steps))
    state = training.TrainState.create(start, nnx.Param, optimizer, seed=seed)
    batch = {name: jnp.asarray(value) for name, value in BATCH.items()}

    @jax.jit
    def step(state):
        def value(trainable):
            made = state.definition.merge(trainable, state.frozen)
            return loss(made, batch, state.step_key())[0]

        gradients = jax.grad(value)(state.trainable)
        changes, held = optimizer.update(gradients, state.optimizer, state.trainable)
        values = jax.tree.map(jnp.add, state.trainable, changes)
        return dataclasses.replace(state, trainable=values, optimizer=held, step=state.step + 1)

    for _ in range(steps):
        state = step(state)
    return state.model()


def close(one, other, **more):
    one, other = models.to_arrays(one), models.to_arrays(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], err_msg=name, **more)


@pytest.mark.parametrize("form", ["branches", "search"])
def test_one_branch_is_its_matrix_by_its_scale(model, form):
    settings = branches.BranchSettings(form=form, scales=(2.0,), groups=(1,))
    close(branches.combined(branches.expand(model, settings)), model, atol=1e-6)


@pytest.mark.parametrize("form", ["branches", "majority", "search"])
def test_the_start_computes_the_same(model, form):
    settings = branches.BranchSettings(form=form, spread=0.1, **TWO)
    made = branches.expand(model, settings)
    close(branches.combined(made), model, atol=1e-6)
    call = jax.jit(lambda model: model(**inputs()))
    np.testing.assert_allclose(call(made), call(model), atol=1e-5)
    own = sum(models.count_parameters(model).values())
    sizes = model.config.matrix_sizes()
    extra = 2 * 2 * sum(i * o for p, (i, o) in sizes.items() if p in _CHOSEN_OF_ONE)
    trained_scales = 3 * 2 * 2 if form == "search" else 0
    assert sum(models.count_parameters(made).values()) == own + extra + trained_scales


_CHOSEN_OF_ONE = ("layers/0/attention/query", "layers/0/feed_forward/up")


def test_multiplied_gradients_learn_as_branches_do(model):
    """Ding et al., proposition 1, with momentum and decoupled decay."""
    of_branches = branches.BranchSettings(form="branches", **TWO)
    of_gradients = branches.BranchSettings(form="gradients", **TWO)
    loss = branches.expanded_loss(LOSS)
    wide = branches.combined(trained(branches.expand(model, of_branches), loss))
    paths = expanded_lib.chosen(model, of_gradients.matrices)

    def wrap(optimizer):
        return branches.multiplied(optimizer, of_gradients, paths)

    narrow = trained(model, LOSS, wrap)
    close(wide, narrow, atol=2e-6)
    plain = trained(model, LOSS)
    path = "layers/0/attention/query/kernel"
    assert np.abs(models.to_arrays(plain)[path] - models.to_arrays(narrow)[path]).max() > 1e-4


def test_a_search_trains_scales_by_what_their_branches_do(model):
    """dL/da_b = <M_b W_b, dL/dW>, and with scales at rest branches learn as under constants."""
    searched = branches.expand(model, branches.BranchSettings(form="search", **TWO))
    assert searched.found == pytest.approx(TWO["scales"])
    loss = branches.expanded_loss(LOSS)
    after = trained(searched, loss, steps=1)
    constant = branches.BranchSettings(form="branches", **TWO)
    plain = trained(branches.expand(model, constant), loss, steps=1)
    for one, other in zip(after.extras, plain.extras, strict=True):
        a, b = state_lib.flatten_variables(one), state_lib.flatten_variables(other)
        for path in a:
            np.testing.assert_allclose(a[path], b[path], atol=1e-7)
    # Only the first branch is not zero at the start, so that only its scales move, but for decay.
    path = next(iter(state_lib.flatten_variables(after.scales[0])))
    moved, rest = (state_lib.flatten_variables(after.scales[k])[path] for k in (0, 1))
    np.testing.assert_allclose(rest, 1.5 * (1 - 0.1 * 0.1), rtol=1e-5)
    gradient = state_lib.flatten_variables(after.model)[path]
    before = state_lib.flatten_variables(searched.model)[path]
    slope = (0.99 * before - gradient) / (0.1 * 0.8)  # dL/dW from the step of the first branch
    expected = 0.99 * 0.8 - 0.1 * np.sum(before * slope, axis=(-2, -1), keepdims=True)
    np.testing.assert_allclose(moved, expected, rtol=1e-4)


def test_multiplied_steps_of_adam_are_those_of_branches(model):
    """As the authors' code has it: power 1, of what is independent of the size of gradients."""
    of_branches = branches.BranchSettings(form="branches", **TWO)
    of_gradients = branches.BranchSettings(form="gradients", **TWO)
    fields = {"name": "adam", "learning_rate": 1e-3, "epsilon": 1e-16, "clip_norm": 0.0}
    start = branches.expand(model, of_branches)
    wide = branches.combined(trained(start, branches.expanded_loss(LOSS), steps=1, fields=fields))
    paths = expanded_lib.chosen(model, of_gradients.matrices)

    def wrap(optimizer):
        return branches.multiplied(optimizer, of_gradients, paths, power=1)

    narrow = trained(model, LOSS, wrap, steps=1, fields=fields)
    path = "layers/0/feed_forward/up/kernel"
    one, other, before = (models.to_arrays(m)[path] for m in (wide, narrow, model))
    np.testing.assert_allclose(one - before, other - before, atol=2e-6)
    factors = branches.multiplier(of_gradients, before.shape, 1)
    np.testing.assert_allclose(np.abs(other - before), 1e-3 * factors, atol=2e-6)


def test_the_multiplier_by_hand():
    settings = branches.BranchSettings(form="gradients", scales=(2.0, 3.0), groups=(1, 2))
    expected = np.full((4, 6), 4.0)
    expected[:2, :3] += 9.0
    expected[2:, 3:] += 9.0
    np.testing.assert_array_equal(branches.multiplier(settings, (5, 4, 6))[0], expected)
    alone = branches.BranchSettings(form="gradients", scales=(2.0,), groups=(1,))
    assert branches.multiplier(alone, (4, 6)) == 4.0


def test_majority_kernels_descend_by_their_weights():
    """On L = <G, sum_b p_b W_b> a step is W_b - rate p_b G, and the mean is what is left."""
    config = models.EncoderConfig(
        vocab_size=7, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8
    )
    start = models.build(config, rngs=nnx.Rngs(0))
    settings = branches.BranchSettings(kernels=3, matrices=".*/query")
    made = branches.expand(start, settings)
    name = next(iter(state_lib.flatten_variables(made.extras[0])))
    slope = np.random.default_rng(0).standard_normal((1, 8, 8)).astype(np.float32)

    def loss(model, batch, key):
        del batch, key
        return jnp.sum(slope * state_lib.flatten_variables(model)[name]), {}

    key = jax.random.key(3)
    value = branches.expanded_loss(loss)
    gradient = nnx.grad(lambda m: value(m, {}, key)[0])(made)
    flat = {state_lib.join(p): v[...] for p, v in nnx.to_flat_state(gradient)}
    names = [f"model/{name}", f"extras/0/{name}", f"extras/1/{name}"]
    weights = np.array([np.mean(flat[n] / slope) for n in names])
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)
    assert len(set(np.round(weights, 4))) == 3
    for n, weight in zip(names, weights, strict=True):
        np.testing.assert_allclose(flat[n], weight * slope, rtol=1e-4)
    # Without a key: the mean, as at the end.
    even = nnx.grad(lambda m: value(m, {}, None)[0])(made)
    flat = {state_lib.join(p): v[...] for p, v in nnx.to_flat_state(even)}
    np.testing.assert_allclose(flat[names[0]], slope / 3, rtol=1e-5)


def test_weights_differ_from_layer_to_layer_and_have_the_mean():
    settings = branches.BranchSettings(kernels=4)
    sampled = np.stack(
        [settings.weights((2, 3, 3), jax.random.key(k)) for k in range(400)]
    )  # (draws, kernels, layers, 1, 1)
    assert sampled.shape == (400, 4, 2, 1, 1)
    np.testing.assert_allclose(sampled.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(sampled.mean(axis=0), 0.25, atol=0.04)
    np.testing.assert_allclose(sampled.var(axis=0), 3 / 80, atol=0.01)  # of Dirichlet(1, 1, 1, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "sums"}, "config.branches.form='sums' must be one of"),
        ({"kernels": 1}, "config.branches.kernels=1 must be an integer of at least 2"),
        ({"groups": (1,)}, "config.branches.groups=.* must be as many as scales"),
        ({"groups": (2, 2)}, "the first 1: a dense branch"),
        ({"form": "branches", "groups": (1, 17)}, "config.branches.groups of 16 x 16=17 must be"),
        ({"matrices": "nothing"}, "matches no dense matrix"),
        ({"matrices": "layers/0/.*"}, "is in the same stack: name all or none"),
    ],
)
def test_bad_input(model, fields, message):
    with pytest.raises(ValueError, match=message):
        branches.expand(model, branches.BranchSettings(**fields))
