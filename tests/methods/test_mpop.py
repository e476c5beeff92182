"""What lightweight fine-tuning trains, and how numbers are counted."""

import dataclasses

import jax.numpy as jnp
import pytest
from flax import nnx

from mpojax import compression, models, mpo, nn
from mpojax.methods import mpop
from mpojax.nn import Dense, Embed, MPOEmbed, MPOLinear
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
        self.adapter = nn.AdapterParam(jnp.zeros((3, 3)))
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
    with pytest.raises(ValueError, match=r"unknown trainable set 'lora'; allowed are all, aux"):
        mpop.trainable_filter("lora")


def last_layers_model():
    config = models.EncoderConfig(20, 8, 3, 2, 16, max_positions=5)
    return models.with_head(models.Encoder(config, rngs=nnx.Rngs(0)), 2, rngs=nnx.Rngs(1))


def test_last_layers_train_with_embeddings_pooler_and_head():
    model, accept = mpop.with_trainable(last_layers_model(), "last_2")
    _, _, frozen = state_lib.split(model, accept)
    assert {path.split("/")[2] for path in state_lib.flatten(frozen)} == {"0"}
    assert {path.split("/")[1] for path in state_lib.flatten(frozen)} == {"stacks"}
    layer = 4 * (8 * 8 + 8) + 2 * 8 * 16 + 16 + 8 + 4 * 8
    assert mpop.parameter_counts(model, accept)["trainable"] == (
        mpop.parameter_counts(model)["total"] - layer
    )
    assert (
        mpop.counts(model.config, (), "last_2")["trainable"]
        == (mpop.parameter_counts(model, accept)["trainable"])
    )


def test_last_layers_leave_a_model_alone_whose_stacks_fit():
    model = last_layers_model()
    again, accept = mpop.with_trainable(model, "last_3")
    assert again is model
    assert (
        mpop.parameter_counts(again, accept)["trainable"] == mpop.parameter_counts(model)["total"]
    )


@pytest.mark.parametrize("name", ["last_4", "last_0", "last_x", "last_", "some"])
def test_an_impossible_set_is_refused(name):
    with pytest.raises(ValueError, match=name):
        mpop.with_trainable(last_layers_model(), name)


def test_a_stack_trained_in_part_is_refused():
    with pytest.raises(ValueError, match="scan_boundaries"):
        mpop.trainable_filter("last_1", last_layers_model())
    with pytest.raises(ValueError, match="pass it"):
        mpop.trainable_filter("last_1")


def test_counts_without_weights_equal_those_of_the_compressed_model():
    model = last_layers_model()
    rules = [(".*/(query|up)", {"bond": 4}), ("embeddings/word", {"rank": 3})]
    small, _ = compression.compress(model, rules)
    expected = mpop.parameter_counts(small, mpop.trainable_filter("lightweight"))
    encoder = dataclasses.replace(model.config, num_labels=None)
    assert mpop.counts(encoder, rules, "lightweight") == expected
    with pytest.raises(ValueError, match="tolerance"):
        mpop.counts(encoder, [("pooler", {"tolerance": 0.5})])


def test_lightweight_without_chains_says_so(caplog):
    mpop.with_trainable(last_layers_model(), "lightweight")
    assert "no matrix of this model is in MPO form" in caplog.text
