"""What lightweight fine-tuning trains, and how numbers are counted."""

import jax.numpy as jnp
import pytest
from flax import nnx

from mpojax import mpo
from mpojax.layers import Dense, Embed, MPOEmbed, MPOLinear, roles
from mpojax.methods import mpop
from mpojax.training import state as state_lib


class Toy(nnx.Module):
    """Embeddings, one MPO matrix, one dense matrix and a head, named as in our encoders."""

    def __init__(self, word: nnx.Module):
        rngs = nnx.Rngs(0)
        self.word = word
        self.position = Embed(5, 8, rngs=rngs)
        self.linear = MPOLinear(mpo.MPOShape((2, 2, 2), (2, 3, 2)), rngs=rngs)
        self.dense = Dense(12, 12, rngs=rngs)
        self.head = Dense(12, 2, rngs=rngs)
        self.adapter = roles.AdapterParam(jnp.zeros((3, 3)))
        self.counter = nnx.Variable(jnp.zeros((), jnp.int32))  # not a parameter: never counted


def dense_word():
    return Toy(Embed(20, 8, rngs=nnx.Rngs(1)))


def mpo_word():
    return Toy(MPOEmbed(mpo.MPOShape((4, 5), (2, 4)), rngs=nnx.Rngs(1)))


def trained(model, name):
    _, parts, _ = state_lib.split(model, mpop.trainable_filter(name))
    return set(state_lib.flatten(parts))


REST = {"position/table", "dense/kernel", "dense/bias", "head/kernel", "head/bias", "adapter"}
AUXILIARY = {"linear/cores/0", "linear/cores/2"}


def test_what_each_filter_trains():
    model = dense_word()
    assert trained(model, "lightweight") == REST | AUXILIARY | {"linear/bias"}
    assert trained(model, "all") == REST | AUXILIARY | {
        "linear/bias",
        "linear/cores/1",
        "word/table",
    }
    assert trained(model, "auxiliary") == AUXILIARY
    assert trained(model, "auxiliary_and_head") == AUXILIARY | {"head/kernel", "head/bias"}


def test_word_embedding_as_mpo_trains_its_auxiliary_core():
    paths = trained(mpo_word(), "lightweight")
    assert "word/cores/1" in paths  # two cores: the first is central
    assert "word/cores/0" not in paths


def test_counts():
    model = dense_word()
    cores = model.linear.shape.core_shapes
    central, auxiliary = 4 * 3 * 2 * 4, 2 * 2 * 4 + 4 * 2 * 2
    assert [tuple(c) for c in cores] == [(1, 2, 2, 4), (4, 2, 3, 4), (4, 2, 2, 1)]
    other = 20 * 8 + 5 * 8 + 12 + (144 + 12) + (24 + 2)
    counts = mpop.parameter_counts(model, mpop.lightweight_filter())
    assert counts == {
        "total": central + auxiliary + other + 9,
        "trainable": auxiliary + other + 9 - 20 * 8,
        "central": central,
        "auxiliary": auxiliary,
        "adapter": 9,
        "other": other,
    }
    everything = mpop.parameter_counts(model)
    assert everything["trainable"] == everything["total"]


def test_shared_core_is_counted_once():
    model = dense_word()
    before = mpop.parameter_counts(model)
    model.again = model.linear.cores[1]
    assert mpop.parameter_counts(model) == before


def test_unknown_name():
    with pytest.raises(
        ValueError, match=r"unknown trainable set 'lora'; allowed are \['all', 'aux"
    ):
        mpop.trainable_filter("lora")
