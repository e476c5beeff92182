"""Matrices that become chains in the middle of a run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import models, training
from mpojax.methods import moments, opdf, opf
from mpojax.methods.opf import fine_tuning
from mpojax.training import objectives
from mpojax.training import state as state_lib
from tests.models import small
from tests.models.test_kinds import IDS, MASK
from tests.training import helpers

CONFIG = dataclasses.replace(small.BERT, num_labels=2, dropout=0.0, attention_dropout=0.0)
BATCH = {"input_ids": IDS, "attention_mask": MASK, "labels": jnp.asarray([0, 1])}
PATHS = ["layers/1/attention/query", "layers/2/feed_forward/up"]


def make_optimizer(model, **changes):
    fields = {"learning_rate": 1e-2, "schedule": "constant"} | changes
    return training.make_optimizer(fields, training.roles(model), 20)


def trained(model):
    optimizer = make_optimizer(model)
    state = training.TrainState.create(model, nnx.Param, optimizer, seed=3)
    step = training.TrainStep(objectives.classification_loss, optimizer)
    for _ in range(3):
        state, _ = step(state, BATCH)
    return state


@pytest.mark.slow
def test_a_run_goes_on_with_more_matrices_as_chains():
    state = trained(small.random_model(CONFIG))
    before = state.model()(IDS, MASK)
    first = moments._logical(state.model(), state.optimizer[1].mu)
    new, optimizer = opf.convert(
        state, PATHS, opdf.OPDFSettings(num_inner_cores=1), nnx.Param, make_optimizer
    )
    model = new.model()
    assert set(model.shapes) == set(PATHS)
    np.testing.assert_allclose(model(IDS, MASK), before, rtol=0, atol=1e-5)
    assert int(new.step) == 3
    np.testing.assert_array_equal(new.key, state.key)
    adam = new.optimizer[1]
    assert int(adam.count) == 3
    for name, value in moments._logical(model, adam.mu).items():
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
        new,
        ["layers/0/attention/out"],
        opdf.OPDFSettings(num_inner_cores=1),
        nnx.Param,
        make_optimizer,
    )
    assert len(again.model().shapes) == 3
    with pytest.raises(ValueError, match="is in MPO form already"):
        opf.convert(again, PATHS, opdf.OPDFSettings(num_inner_cores=1), nnx.Param, make_optimizer)


def test_an_optimizer_that_cannot_follow():
    def muon(model):
        return make_optimizer(model, name="muon")

    model = small.random_model(CONFIG)
    state = training.TrainState.create(model, nnx.Param, muon(model), seed=3)
    with pytest.raises(ValueError, match="cannot follow"):
        opf.convert(state, PATHS, opdf.OPDFSettings(num_inner_cores=1), nnx.Param, muon)
    with pytest.raises(ValueError, match="name at least one matrix"):
        opf.only(opdf.OPDFSettings(), [])


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


def test_dynamic_scores_are_first_order_changes():
    model = small.random_model(CONFIG)
    state = training.TrainState.create(model, nnx.Param, make_optimizer(model), seed=3)
    found = fine_tuning.dynamic_scores(state, PATHS, objectives.classification_loss, [BATCH, BATCH])

    def loss(trainable):
        return objectives.classification_loss(
            state.definition.merge(trainable, state.frozen), BATCH, None
        )[0]

    slopes = state_lib.flatten(jax.jit(jax.grad(loss))(state.trainable))
    slopes = models.logical_arrays(model, slopes)
    arrays = models.to_arrays(model)
    for path in PATHS:
        name = f"{path}/kernel"
        expected = abs(2 * np.sum(np.asarray(slopes[name], np.float64) * arrays[name]))
        assert found[path] == pytest.approx(expected, rel=1e-4)


class Rows:
    batch_size = 2

    def rows(self, step, rows):
        return {name: np.asarray(value)[rows] for name, value in BATCH.items()}


SETTINGS = opf.OPFSettings(
    num_per_role=2, num_per_round=1, interval=3.0, score_batches=2, num_inner_cores=1
)


def fit(hook, steps, folder=None, every=0, hooks=()):
    model = small.random_model(CONFIG)
    optimizer = make_optimizer(model)
    state = training.TrainState.create(model, nnx.Param, optimizer, seed=3)
    hooks = [hook, *hooks]
    if folder is not None:
        hooks.append(training.Checkpoint(every=every, at_end=False))
    return training.fit(
        state,
        objectives.classification_loss,
        Rows(),
        optimizer=optimizer,
        steps=steps,
        mesh=training.make_mesh(devices=jax.devices()[:1]),
        hooks=hooks,
        folder=folder,
    )


def dynamic(steps=9, settings=SETTINGS):
    model = small.random_model(CONFIG)
    return opf.Dynamic(
        model, settings, objectives.classification_loss, nnx.Param, make_optimizer, steps
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The hook and the model of a run, and its folder as it was after step 7."""
    folder, hook = tmp_path_factory.mktemp("whole"), dynamic()
    copy = helpers.CopyFolder(7, folder / "run", folder / "killed")  # after the second choice
    return hook, fit(hook, 9, folder / "run", every=7, hooks=[copy]).state.model(), copy.target


def test_matrices_become_chains_until_each_role_has_enough(whole):
    hook, model, _ = whole
    assert [step for step, _ in hook.chosen] == [3, 6]
    counts = {}
    for path in hook.paths:
        counts[opf.role(path)] = counts.get(opf.role(path), 0) + 1
    assert set(counts.values()) == {2}
    assert len(counts) == 6
    assert set(model.shapes) == set(hook.paths)
    report = opf.report(model, hook.chosen)
    assert report["train_parameters"] > report["inference_parameters"]
    plain = sum(models.count_parameters(small.random_model(CONFIG)).values())
    assert report["inference_parameters"] == plain
    assert [entry["step"] for entry in report["chosen"]] == [3, 6]


def test_a_dynamic_run_that_is_killed_resumes_to_the_same_end(whole):
    hook = dynamic()
    again = fit(hook, 9, whole[2], every=7)
    assert again.steps_run == 2
    assert [step for step, _ in hook.chosen] == [3, 6]
    one, other = (models.to_arrays(model) for model in (whole[1], again.state.model()))
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(other[name], array)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategy": "greedy"}, "opf.strategy='greedy' must be one of 'static', 'dynamic'"),
        ({"num_per_role": 0}, "opf.num_per_role=0 must be an integer of at least 1"),
        ({"interval": 0.0}, "opf.interval=0.0 must be a finite number above 0"),
        ({"num_inner_cores": -1}, "num_inner_cores=-1 must be"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        opf.OPFSettings(**fields)


def test_a_selection_that_never_ends():
    with pytest.raises(ValueError, match="by step 60 of 60, and nothing would be trained"):
        dataclasses.replace(SETTINGS, interval=30.0).round_steps(60)
    assert dataclasses.replace(SETTINGS, interval=0.1).round_steps(60) == [6, 12]
    find = functools.partial(opf.candidates, small.random_model(CONFIG))
    with pytest.raises(ValueError, match="matches no matrix"):
        find(dataclasses.replace(SETTINGS, matrices="nothing"))
