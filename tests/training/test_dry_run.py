"""Costs of a step that is never run."""

import gc
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import models, mpo, training
from mpojax.nn.moe import grouped_matmul
from mpojax.training import state as state_lib
from mpojax.training.dry_run import program_flops
from tests.training import helpers

BATCH = {
    "x": jax.ShapeDtypeStruct((16, helpers.FEATURES), jnp.float32),
    "labels": jax.ShapeDtypeStruct((16,), jnp.int32),
}


RULES = training.Rules(fsdp_min_size=1)


def report(mesh=None, batch=BATCH, rules=RULES, **more):
    config = helpers.config(**more.pop("optimizer", {}))
    model = helpers.Classifier()
    optimizer = training.make_optimizer(config, training.roles(model), 10)
    state = training.abstract_state(model, helpers.LIGHTWEIGHT, optimizer)
    mesh = training.make_mesh(mesh or {})
    return training.dry_run(
        state, helpers.loss_fn, batch, optimizer=optimizer, mesh=mesh, rules=rules, **more
    )


class TestReport:
    def test_sizes_equal_those_of_a_real_run(self):
        made = report({"data": 2, "fsdp": 4})
        mesh = training.make_mesh({"data": 2, "fsdp": 4})
        state = helpers.run(steps=2, mesh=mesh, rules=RULES).state

        def on_first_device(tree):
            return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

        real = on_first_device((state.trainable, state.frozen))
        assert made.bytes_per_device["parameters"] == real
        assert sum(row.bytes_per_device for row in made.table) == real
        assert made.bytes_per_device["optimizer"] == on_first_device(state.optimizer)
        assert made.bytes_per_device["batch"] == 16 * (helpers.FEATURES + 1) * 4 / 8
        known = [made.bytes_per_device[n] for n in ("parameters", "optimizer", "batch")]
        assert made.bytes_per_device["peak"] == sum(known) + made.bytes_per_device["temporaries"]
        assert made.parameters == {"auxiliary": 12 * 8 + 8 * 16, "other": 16 * 5 + 4, "central": 64}
        assert (made.total, made.trained) == (372, 308)

    def test_for_people_and_for_programs(self):
        made = report({"data": 2, "fsdp": 4}, model_flops=1000)
        text = made.text()
        assert "mesh: data=2 x fsdp=4" in text
        assert "x 16x12, labels 16" in text
        for words in (
            ["parameters", "372", "308", "trained"],
            ["central", "64"],
            ["body/cores/1", "8", "x", "8", "-,", "fsdp", "0.000"],
            ["optimizer", "0.0", "MiB"],
        ):
            assert any(line.split()[: len(words)] == words for line in text.splitlines()), words
        assert f"{1000 / made.program_flops:.0%} of the program's" in text
        assert json.loads(json.dumps(made.summary()))["total"] == 372

    @pytest.mark.parametrize(
        "more",
        [
            {"grad_accum_steps": 2},
            {"optimizer": {"name": "muon", "muon_excluded": ()}},
        ],
        ids=str,
    )
    def test_whatever_the_step_is(self, more):
        assert report(**more).program_flops >= report().program_flops

    def test_nothing_is_allocated(self):
        gc.collect()  # arrays of earlier tests
        before = len(jax.live_arrays())
        config = models.EncoderConfig(
            vocab_size=10**6, hidden_size=4096, num_layers=96, num_heads=8, intermediate_size=16384
        )
        model = nnx.eval_shape(lambda: models.build(config, {}, rngs=nnx.Rngs(0)))
        optimizer = training.make_optimizer({}, training.roles(model), 10)
        state = training.abstract_state(model, nnx.Param, optimizer)
        assert sum(math.prod(x.shape) for x in jax.tree.leaves(state.trainable)) > 2 * 10**10
        assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(state))
        assert len(jax.live_arrays()) == before

    def test_mistakes(self):
        odd = {"x": jax.ShapeDtypeStruct((12, helpers.FEATURES), jnp.float32)}
        with pytest.raises(ValueError, match=r"batch_size=12 cannot be split .* = 2 x 4"):
            report({"data": 2, "fsdp": 4}, batch=odd)
        uneven = BATCH | {"labels": jax.ShapeDtypeStruct((8,), jnp.int32)}
        with pytest.raises(ValueError, match=r"equally many rows; got \[8, 16\]"):
            report(batch=uneven)


class TestProgramFlops:
    def count(self, function, *shapes):
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        return program_flops(jax.make_jaxpr(function)(*arrays))

    def test_products(self):
        assert self.count(jnp.matmul, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
        assert self.count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (7, 3, 4), (7, 4, 5)) == (
            7 * 2 * 3 * 4 * 5
        )
        assert self.count(jnp.add, (3,), (3,)) == 0

    @pytest.mark.parametrize("product", [jax.lax.ragged_dot, grouped_matmul.ragged_dot])
    def test_products_of_groups(self, product):
        """Each row with one matrix, forward and twice backward; of a kernel by its estimate."""
        counts = jnp.asarray([100, 20, 8], jnp.int32)

        def loss(x, w):
            return jnp.sum(product(x, w, counts) ** 2)

        counted = self.count(jax.grad(loss, (0, 1)), (128, 16), (3, 16, 24))
        assert counted == 3 * 2 * 128 * 16 * 24

    def test_loops_branches_and_recomputation(self):
        def layers(x, w):
            return jax.lax.scan(lambda x, one: (x @ one, None), x, w)[0]

        once = 2 * 3 * 4 * 4
        assert self.count(layers, (3, 4), (6, 4, 4)) == 6 * once
        assert self.count(jax.jit(layers), (3, 4), (6, 4, 4)) == 6 * once

        def loss(x, w):
            body = jax.checkpoint(lambda x, one: (jnp.tanh(x @ one), None))
            return jax.lax.scan(body, x, w)[0].sum()

        # Forward, again, and two products backward.
        assert self.count(jax.grad(loss, (0, 1)), (3, 4), (6, 4, 4)) == 4 * 6 * once

        def either(x, w):
            return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

        assert self.count(either, (3, 4), (4, 4)) == 2 * once


def test_model_flops_of_bert():
    """Spec, section 7: BERT-base at length 512 costs 96.6368 GFLOP forward, matrices alone."""
    config = models.EncoderConfig(
        vocab_size=100,
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        intermediate_size=3072,
        pooling="none",
    )
    assert models.model_flops(config, 1, 512) / 3 == pytest.approx(96.6368e9, rel=1e-6)
    assert models.model_flops(config, 8, 512) == 8 * models.model_flops(config, 1, 512)


def test_model_flops_equal_those_of_the_dense_program():
    config = models.EncoderConfig(
        vocab_size=40,
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        intermediate_size=32,
        embedding_size=8,
        num_labels=2,
        masked_lm=True,
    )
    model = nnx.eval_shape(lambda: models.build(config, {}, rngs=nnx.Rngs(0)))

    def forward(model, ids, positions):
        return model(ids, mlm_positions=positions)

    ids, positions = (jax.ShapeDtypeStruct((4, n), jnp.int32) for n in (10, 3))
    counted = program_flops(jax.make_jaxpr(forward)(model, ids, positions))
    expected = models.model_flops(config, 4, 10, predictions=3) / 3
    # Beside them jax's attention makes small products of its own, e.g. for masks.
    assert counted == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_full_size_without_allocating_it():
    """MPOBERT48: 74,618,034 numbers; central cores of all layers are there once, and split once."""
    config = models.EncoderConfig(
        vocab_size=30000,
        hidden_size=1024,
        num_layers=48,
        num_heads=16,
        intermediate_size=4096,
        embedding_size=128,
        layer_groups=1,
        shared_roles=("central", "other"),
        masked_lm=True,
        num_labels=2,
        remat=True,
    )
    narrow, wide = (4, 4, 4, 4, 4), (4, 4, 8, 8, 4)
    lists = dict.fromkeys(("query", "key", "value", "out"), (narrow, narrow))
    lists = {f"attention/{name}": pair for name, pair in lists.items()}
    lists |= {"feed_forward/up": (narrow, wide), "feed_forward/down": (wide, narrow)}
    shapes = {
        f"layers/{layer}/{name}": mpo.MPOShape(*pair)
        for layer in config.matrix_layers
        for name, pair in lists.items()
    }
    model = nnx.eval_shape(lambda: models.build(config, shapes, rngs=nnx.Rngs(0)))
    optimizer = training.make_optimizer({"name": "lamb"}, training.roles(model), 10)
    state = training.abstract_state(model, nnx.Param, optimizer)
    batch = {"input_ids": jax.ShapeDtypeStruct((8, 128), jnp.int32)}

    def loss(model, batch, key):
        mlm, sop = model(batch["input_ids"], dropout_key=key)
        return jnp.mean(mlm**2) + jnp.mean(sop**2), {}

    mesh = training.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    rules = training.model_rules(model)
    made = training.dry_run(state, loss, batch, optimizer=optimizer, mesh=mesh, rules=rules)
    assert made.total == 74_618_034
    assert made.parameters["central"] == 12_582_912
    central = [row for row in made.table if row.path.endswith("up/cores/2")]
    assert [row.shape for row in central] == [(1, 256, 4, 8, 512)]
    assert central[0].spec == jax.sharding.PartitionSpec(None, "tensor", None, None, "fsdp")
    assert central[0].bytes_per_device == 4_194_304 * 4 / 4
    assert made.bytes_per_device["parameters"] < 0.5 * 4 * made.total
    assert np.isfinite(made.bytes_per_device["temporaries"])
    paths = state_lib.flatten(state.trainable)
    assert len(made.table) == len(paths)
