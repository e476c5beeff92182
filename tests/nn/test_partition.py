"""Activations that are told where to lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from mpojax import mpo, nn, training
from mpojax.nn import functional


def placed(x, *axes):
    return jax.jit(lambda y: functional.shard(y, *axes))(x)


def test_nothing_happens_without_a_mesh_or_on_one_device():
    x = jnp.ones((8, 4))
    assert functional.shard(x, functional.BATCH, None) is x
    with jax.set_mesh(training.make_mesh({}, jax.devices()[:1])):
        assert functional.shard(x, functional.BATCH, None) is x


@pytest.mark.parametrize(
    ("mesh", "shape", "spec"),
    [
        ({"data": 2, "fsdp": 2, "tensor": 2}, (8, 3, 4), P(("data", "fsdp"), None, "tensor")),
        ({"data": 8}, (8, 3, 4), P(("data", "fsdp"), None, "tensor")),
        ({"data": 2, "expert": 2, "tensor": 2}, (8, 3, 4), P(("data", "expert"), None, "tensor")),
        # 6 rows are no multiple of 4, 3 features none of 2: left to the compiler.
        ({"data": 2, "fsdp": 2, "tensor": 2}, (6, 3, 4), P(None, None, "tensor")),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (8, 3, 3), P(("data", "fsdp"))),
    ],
)
def test_split_where_it_divides(mesh, shape, spec):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    mesh = training.make_mesh(mesh)
    with jax.set_mesh(mesh):
        y = placed(x, functional.BATCH, None, functional.TENSOR)
    assert y.sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, spec), len(shape))
    np.testing.assert_array_equal(y, x)


def test_a_mesh_of_other_axes_is_left_alone():
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(placed(np.ones((8, 2)), functional.BATCH, None), 1.0)


@pytest.mark.parametrize("form", ["dense", "mpo"])
def test_work_of_a_block_is_divided_over_the_tensor_axis(form):
    """Replicated parameters: what divides the work is the place of the features alone."""
    shapes = {"up": mpo.MPOShape((4, 4), (8, 8)), "down": mpo.MPOShape((8, 8), (4, 4))}
    block = nn.FeedForward(16, 64, "relu", shapes if form == "mpo" else None, rngs=nnx.Rngs(0))
    x = jnp.ones((4, 128, 16))

    def flops(sizes):
        mesh = training.make_mesh(sizes)
        everywhere = jax.sharding.NamedSharding(mesh, P())
        with jax.set_mesh(mesh):
            compiled = (
                jax.jit(lambda block, x: block(x), in_shardings=everywhere)
                .lower(block, x)
                .compile()
            )
        return compiled.cost_analysis()["flops"]

    assert flops({"tensor": 8}) < 0.25 * flops({"data": 1, "expert": 8})
