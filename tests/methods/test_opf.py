"""Matrices that become chains in the middle of a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import models, training
from mpojax.methods import moments, opdf, opf
from mpojax.training import objectives
from tests.models import small
from tests.models.test_kinds import IDS, MASK

CONFIG = dataclasses.replace(small.BERT, num_labels=2, dropout=0.0, attention_dropout=0.0)
BATCH = {"input_ids": IDS, "attention_mask": MASK, "labels": jnp.asarray([0, 1])}
PATHS = ["layers/1/attention/query", "layers/2/feed_forward/up"]


def make_optimizer(model, **changes):
    fields = {"learning_rate": 1e-2, "schedule": "constant"} | changes
    return training.make_optimizer(fields, training.roles(model), 20)


def trained(model, **changes):
    optimizer = make_optimizer(model, **changes)
    state = training.TrainState.create(model, nnx.Param, optimizer, seed=3)
    step = training.TrainStep(objectives.classification_loss, optimizer)
    for _ in range(3):
        state, _ = step(state, BATCH)
    return state


def test_a_run_goes_on_with_more_matrices_as_chains():
    state = trained(small.random_model(CONFIG))
    before = state.model()(IDS, MASK)
    first = moments._by_logical_path(state.optimizer[1].mu, state.model())
    new, optimizer = opf.convert(state, PATHS, opdf.Settings(units=1), nnx.Param, make_optimizer)
    model = new.model()
    assert set(model.shapes) == set(PATHS)
    np.testing.assert_allclose(model(IDS, MASK), before, rtol=0, atol=1e-5)
    assert int(new.step) == 3
    np.testing.assert_array_equal(new.key, state.key)
    adam = new.optimizer[1]
    assert int(adam.count) == 3
    for name, value in moments._by_logical_path(adam.mu, model).items():
        if "/cores/" in name:
            assert not np.any(value)
        else:
            np.testing.assert_array_equal(value, first[name])
    loss = training.TrainStep(objectives.classification_loss, optimizer)
    values = [objectives.classification_loss(model, BATCH, jax.random.key(0))[0]]
    for _ in range(8):
        new, metrics = loss(new, BATCH)
        values.append(metrics["loss"])
    assert values[-1] < values[1]
    again, _ = opf.convert(
        new, ["layers/0/attention/out"], opdf.Settings(units=1), nnx.Param, make_optimizer
    )
    assert len(again.model().shapes) == 3
    with pytest.raises(ValueError, match="is in MPO form already"):
        opf.convert(again, PATHS, opdf.Settings(units=1), nnx.Param, make_optimizer)


def test_an_optimizer_that_cannot_follow():
    def muon(model):
        return make_optimizer(model, name="muon")

    state = trained(small.random_model(CONFIG), name="muon")
    with pytest.raises(ValueError, match="cannot follow"):
        opf.convert(state, PATHS, opdf.Settings(units=1), nnx.Param, muon)
    with pytest.raises(ValueError, match="name at least one matrix"):
        opf.only(opdf.Settings(), [])


def test_static_scores_are_changes_of_the_loss():
    model = small.random_model(CONFIG)

    def loss(model):
        return float(objectives.classification_loss(model, BATCH, None)[0])

    arrays = models.to_arrays(model)
    arrays["layers/2/feed_forward/up/kernel"] = np.zeros_like(
        arrays["layers/2/feed_forward/up/kernel"]
    )
    zeroed = models.from_arrays(CONFIG, {}, arrays)
    found = opf.static_scores(model, PATHS, loss)
    assert found[PATHS[1]] == pytest.approx(abs(loss(model) - loss(zeroed)), rel=1e-5)
    assert opf.static_scores(zeroed, PATHS[1:], loss) == {PATHS[1]: 0.0}
