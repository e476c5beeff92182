"""Settings of MPOBERT: what is shared, what is adapted, and training that keeps it so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mpojax import io, models, mpo
from mpojax.methods import mpobert
from mpojax.methods.mpobert import start

SMALL = {
    "num_layers": 3,
    "vocab_size": 40,
    "embedding_size": 8,
    "hidden_size": 16,
    "num_heads": 2,
    "max_positions": 16,
}
IDS = jnp.asarray(np.random.default_rng(0).integers(1, 40, (2, 8)), jnp.int32)


def test_what_is_stored_once_and_what_for_every_layer():
    config, shapes = mpobert.settings(adapter_rank=2, **SMALL)
    names = models.array_shapes(config, shapes)
    query = [name for name in names if "attention/query" in name]
    once = [name for name in query if name.startswith("layers/1/")]
    assert sorted(name.removeprefix("layers/1/attention/query/") for name in once) == [
        *("adapter/down", "adapter/up"),
        *(f"cores/{k}" for k in (0, 1, 3, 4)),
    ]
    assert "layers/0/attention/query/cores/2" in names
    assert "layers/0/attention/query/bias" in names
    per_layer, _ = mpobert.settings(bias_and_norm="per_layer", **SMALL)
    assert "layers/1/attention/query/bias" in models.array_shapes(per_layer, shapes)


@pytest.mark.parametrize(
    ("options", "adapted"),
    [
        ({}, {"query", "key", "value", "out"}),
        ({"adapter_targets": ("up", "down")}, {"up", "down"}),
        ({"adapt_outside": True, "adapter_targets": ()}, {"pooler", "projection"}),
    ],
)
def test_adapters_are_where_they_are_wanted(options, adapted):
    config, _ = mpobert.settings(adapter_rank=3, **SMALL, **options)
    ranks = {path: s.rank for path, s in models.adapter_settings(config).items()}
    assert {path.rpartition("/")[2] for path in ranks} == adapted
    assert set(ranks.values()) == {3}


def test_layers_become_different_with_the_first_step_and_stay_so_in_a_folder(tmp_path):
    """The released code overwrote trained auxiliary cores whenever a checkpoint was loaded."""
    config, shapes = mpobert.settings(**SMALL)
    model = start.from_scratch(config, shapes, stddev=0.3)

    def loss(model):
        logits, order = model(IDS)
        labels = jnp.roll(IDS, 1, axis=1)
        words = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(words) + jnp.mean(order**2)

    gradient = jax.jit(jax.grad(loss))(model)
    stepped = jax.tree.map(lambda p, g: p - 0.1 * g, model, gradient)
    arrays = models.to_arrays(stepped)
    cores = [arrays[f"layers/{i}/attention/value/cores/1"] for i in range(3)]
    assert not np.allclose(cores[0], cores[1], atol=1e-6)
    io.save_pretrained(stepped, tmp_path / "m")
    loaded = io.load_pretrained(tmp_path / "m")
    for name, array in models.to_arrays(loaded).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    tuned = models.with_head(loaded, 3, rngs=nnx.Rngs(0))
    assert not tuned.config.masked_lm
    after = models.to_arrays(tuned)
    np.testing.assert_array_equal(after["layers/1/attention/value/cores/1"], cores[1])


def test_merged_sides_are_the_same_function():
    """The auxiliary cores of each side merged into one: n = 3 with the same central core."""
    shape = mpobert.chain(16, 64)
    cores = mpo.decompose(np.random.default_rng(0).standard_normal((16, 64)), shape)
    left, right = (
        np.einsum("aijb,bklc->aikjlc", *pair).reshape(
            pair[0].shape[0],
            pair[0].shape[1] * pair[1].shape[1],
            pair[0].shape[2] * pair[1].shape[2],
            pair[1].shape[3],
        )
        for pair in (cores[:2], cores[3:])
    )
    merged = (left, cores[2], right)
    np.testing.assert_allclose(mpo.to_matrix(merged), mpo.to_matrix(cores), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 2}, "num_layers=3 cannot be divided into layer_groups=2"),
        ({"bias_and_norm": "both"}, "must be one of 'shared', 'per_layer'"),
        ({"adapter_rank": 2, "adapter_targets": ("q",)}, "adapter_targets: unknown 'q'"),
        ({"adapter_rank": -1}, "adapter_rank=-1 must be an integer of at least 0"),
        ({"adapter_rank": 2, "adapter_targets": ()}, "has nothing to adapt"),
        ({"num_head": 2}, "fields of the encoder: unknown 'num_head', did you mean 'num_heads'"),
        ({"bond": 0}, "bond cap=0 must be an integer"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(ValueError, match=message):
        mpobert.settings(**SMALL, **options)


def test_unknown_variants_are_named():
    with pytest.raises(ValueError, match=r"variant of MPOBERT: unknown 'mpobert13'.*mpobert12"):
        mpobert.variant("mpobert13")
