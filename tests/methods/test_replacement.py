"""Layers of a student in the places of their teacher's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import models
from mpojax.methods.opdf import distillation, theseus
from mpojax.training import state as state_lib
from tests.models import small
from tests.models.test_kinds import IDS, MASK

BATCH = {"input_ids": IDS, "attention_mask": MASK, "labels": jnp.asarray([0, 1])}
MAP = (1, 3, 5)


@pytest.fixture(scope="module")
def pair():
    config = dataclasses.replace(small.BERT, num_labels=2, dropout=0.0, attention_dropout=0.0)
    deep = dataclasses.replace(config, num_layers=6)
    return distillation.Pair(small.random_model(config), small.random_model(deep, seed=1))


def logits(pair, rate, seed=0):
    return theseus.mixed_logits(pair, BATCH, MAP, jnp.float32(rate), jax.random.key(seed))


def test_with_probability_one_it_is_the_student(pair):
    np.testing.assert_allclose(logits(pair, 1.0), pair.student(IDS, MASK), rtol=0, atol=1e-5)


def test_with_probability_zero_it_is_the_teachers_layers_under_the_students_head(pair):
    student, mask = pair.student, models.self_attention_mask(MASK)
    x = student.encoder.embeddings(IDS)
    for layer in range(6):
        x = pair.teacher.encoder.layer(layer)(x, models.Context(mask))[0]
    np.testing.assert_allclose(logits(pair, 0.0), student.apply_head(x, MASK), rtol=0, atol=1e-5)


def test_both_are_mixed_by_the_key(pair):
    mixed = jax.jit(lambda seed: logits(pair, 0.5, seed))
    found = {round(float(mixed(seed)[0, 0]), 4) for seed in range(30)}
    assert 4 < len(found) <= 2**3


def test_only_chosen_layers_have_a_gradient(pair):
    loss = theseus.replacement_loss(MAP)

    definition, trained, frozen = state_lib.split(pair, theseus.of_successors)

    @jax.jit
    def run(trained, rate):
        batch = BATCH | {"replacement_rate": jnp.full((2,), rate)}

        def value(trained):
            return loss(definition.merge(trained, frozen), batch, jax.random.key(0))

        return jax.value_and_grad(value, has_aux=True)(trained)

    def of_rate(rate):
        (total, metrics), slopes = run(trained, np.float32(rate))
        assert float(metrics["replacement_rate"]) == rate
        assert float(total) == float(metrics["task_loss"])
        return state_lib.flatten(slopes)

    assert all(path.startswith("student/encoder/stacks") for path in of_rate(0.0))
    assert not any(np.any(slope) for slope in of_rate(0.0).values())
    assert any(np.any(slope) for slope in of_rate(1.0).values())


def test_the_probability_grows_with_the_step():
    class Data:
        batch_size = 4

        def rows(self, step, rows):
            return {"labels": np.arange(4)[rows]}

    rated = theseus.Rated(Data(), theseus.ReplacementSettings(start=0.5, growth=0.1))
    found = [rated.rows(step, slice(1, 4))["replacement_rate"] for step in (0, 2, 9)]
    np.testing.assert_allclose(found, [[0.5] * 3, [0.7] * 3, [1.0] * 3], rtol=1e-6)
    assert rated.batch_size == 4


def test_mistakes():
    for layer_map in ((1, 3), (3, 1, 5), (1, 1, 5)):
        with pytest.raises(ValueError, match="must grow and end with 5"):
            theseus.runs_of_layers(layer_map, 6)
    assert theseus.runs_of_layers(MAP, 6) == [range(2), range(2, 4), range(4, 6)]
    with pytest.raises(ValueError, match=r"start=2.0 must be a finite number from 0 to 1"):
        theseus.ReplacementSettings(start=2.0)
    with pytest.raises(ValueError, match=r"growth=-1.0 must be a finite number of at least 0"):
        theseus.ReplacementSettings(growth=-1.0)
