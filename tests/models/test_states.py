"""What every layer of an encoder gives, against the layers one after the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import models
from tests.models import small
from tests.models.test_kinds import IDS, MASK

BERT = dataclasses.replace(small.BERT, num_labels=2)
GROUPED = dataclasses.replace(BERT, num_layers=4, layer_groups=2)
BLOCKS = dataclasses.replace(GROUPED, shared_roles=("central",))


@pytest.mark.parametrize("config", [BERT, GROUPED, BLOCKS], ids=["own", "shared", "blocks"])
def test_states_are_those_of_layers_one_after_the_other(config):
    model = small.random_model(config)

    @jax.jit
    def one_by_one(model):
        x, mask, found = model.encoder.embeddings(IDS), models.self_attention_mask(MASK), []
        for layer in range(config.num_layers):
            module = model.encoder.layer(layer)
            weights = module.attention.weights(x, mask)
            x, _, _ = module(x, models.Context(mask))
            found.append((weights, x))
        return found

    states = jax.jit(lambda model: model.states(IDS, MASK, attention=True))
    whole = jax.jit(lambda model: (model(IDS, MASK), model.encoder(IDS, MASK)))
    (logits, hidden, attention), (expected, last) = states(model), whole(model)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)
    assert hidden.shape[0] == attention.shape[0] == config.num_layers
    for layer, (weights, x) in enumerate(one_by_one(model)):
        np.testing.assert_allclose(attention[layer], weights, rtol=0, atol=1e-6)
        np.testing.assert_allclose(hidden[layer], x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(hidden[-1], last, rtol=0, atol=1e-6)
    assert jax.eval_shape(lambda model: model.states(IDS, MASK), model)[2] is None


def test_attention_is_a_distribution_over_real_positions():
    attention = small.random_model(BERT).states(IDS, MASK, attention=True)[2]
    np.testing.assert_allclose(jnp.sum(attention, axis=-1), 1.0, rtol=1e-6)
    to_padding = np.where(np.asarray(MASK)[None, :, None, None, :] == 0, attention, 0.0)
    assert np.max(to_padding) < 1e-6


def test_states_with_dropout_and_gradients():
    model = small.random_model(dataclasses.replace(BERT, dropout=0.1))
    key = jax.random.key(0)
    logits, hidden, _ = model.states(IDS, MASK, None, key)
    np.testing.assert_allclose(logits, model(IDS, MASK, None, key), rtol=0, atol=1e-6)
    assert np.any(hidden != model.states(IDS, MASK)[1])
    slope = jax.jit(
        jax.grad(lambda m: jnp.sum(jnp.square(m.states(IDS, MASK, attention=True)[2])))
    )(model)
    assert np.any(slope.encoder.stacks[0].attention.query.kernel[...])


def test_mistakes():
    model = small.random_model(BERT)
    with pytest.raises(ValueError, match=r"layer 9: the layers are 0\.\.2"):
        model.encoder.layer(9)
    with pytest.raises(ValueError, match="do not give probabilities"):
        small.random_model(small.MOBILEBERT).states(IDS, MASK, attention=True)
