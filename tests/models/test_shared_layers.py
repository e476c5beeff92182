"""One stored layer run many times: values, gradients, dropout, and that it is rebuilt once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import models, mpo, nn
from tests.models import small
from tests.models.test_kinds import IDS, MASK

CONFIG = dataclasses.replace(small.ALBERT, num_labels=2)
# Unusual bonds: no array of the model but a core has these sizes.
SHAPES = {path: s.with_bonds(3) for path, s in small.all_shapes(CONFIG).items() if "layers" in path}

run = jax.jit(lambda model, *args, **kwargs: model(*args, **kwargs))


@pytest.fixture(scope="module")
def shared():
    return small.random_model(CONFIG, SHAPES)


def _unrolled(model):
    """The same function with a copy of the layer for every depth."""
    config = dataclasses.replace(model.config, layer_groups=None)
    arrays, shapes = {}, {}
    for source, target in ((models.to_arrays(model), arrays), (model.shapes, shapes)):
        for name, value in source.items():
            rest = name.removeprefix("layers/0/")
            copies = [name] if rest == name else [f"layers/{i}/{rest}" for i in range(3)]
            target.update(dict.fromkeys(copies, value))
    return models.from_arrays(config, shapes, arrays)


def _loss(model, **kwargs):
    return jnp.sum(jnp.square(model(IDS, MASK, **kwargs)))


def _layer_arrays(gradient) -> dict[str, np.ndarray]:
    """Gradients by name in the layer, summed over layers."""
    total = {}
    for name, array in models.to_arrays(gradient).items():
        if name.startswith("layers/"):
            rest = name.split("/", 2)[2]
            total[rest] = total.get(rest, 0.0) + np.asarray(array, np.float64)
    return total


def test_only_one_layer_is_stored(shared):
    assert [stack.attention_norm.scale.shape[0] for stack in shared.encoder.stacks] == [1]
    paths = [p for p in CONFIG.matrix_sizes() if p.startswith("layers/")]
    assert len(paths) == 6
    assert all(p.startswith("layers/0/") for p in paths)
    deeper = dataclasses.replace(CONFIG, num_layers=7)
    assert models.array_shapes(deeper, SHAPES) == models.array_shapes(CONFIG, SHAPES)


@pytest.mark.parametrize("remat", [False, True])
def test_values_and_gradients_are_those_of_copies(shared, remat):
    model = models.reconfigure(shared, remat=remat)
    copies = _unrolled(shared)
    expected = run(copies, IDS, MASK)
    np.testing.assert_allclose(run(model, IDS, MASK), expected, rtol=1e-4, atol=1e-5)
    found = jax.jit(jax.grad(_loss))(model)
    summed = _layer_arrays(jax.jit(jax.grad(_loss))(copies))
    assert set(_layer_arrays(found)) == set(summed)
    for name, array in _layer_arrays(found).items():
        scale = np.abs(summed[name]).max() + 1e-3
        np.testing.assert_allclose(array, summed[name], rtol=0, atol=1e-4 * scale, err_msg=name)


def test_every_depth_has_dropout_of_its_own(shared):
    model = models.reconfigure(shared, dropout=0.3)
    key = jax.random.key(0)
    expected = run(_unrolled(model), IDS, MASK, dropout_key=key)
    np.testing.assert_allclose(
        run(model, IDS, MASK, dropout_key=key), expected, rtol=1e-4, atol=1e-5
    )


def _inner_programs(program):
    """All programs inside of one, with whether each lies within a scan."""
    for equation in program.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield equation, inner
                yield from _inner_programs(inner)


def _scans(function, model):
    """The scan equations of a program on this model."""
    program = jax.make_jaxpr(function)(model).jaxpr
    return [eq for eq, _ in _inner_programs(program) if eq.primitive.name == "scan"]


def _core_shapes(model):
    return {s for shape in model.shapes.values() for s in shape.core_shapes}


@pytest.mark.parametrize("function", [_loss, jax.grad(_loss)], ids=["forward", "backward"])
def test_no_core_enters_the_loop(shared, function):
    """Rebuilt outside: the scan over depths reads whole matrices and no core."""
    scans = _scans(function, shared)
    assert scans
    read = [{v.aval.shape for v in scan.invars} for scan in scans]
    assert all((16, 16) in shapes and (16, 32) in shapes for shapes in read)
    assert not any(shapes & _core_shapes(shared) for shapes in read)
    # Layers with parameters of their own carry their cores into the loop: the check can fail.
    own = _scans(function, _unrolled(shared))
    stacked = {(3, *s) for s in _core_shapes(shared)}
    assert any(stacked & {v.aval.shape for v in scan.invars} for scan in own)


def test_each_matrix_is_rebuilt_once(shared, monkeypatch):
    calls = []
    rebuild = mpo.to_matrix

    def counted(cores, shape=None):
        calls.append(shape)
        return rebuild(cores, shape)

    monkeypatch.setattr(mpo, "to_matrix", counted)
    ids = IDS[:, :5]  # A length of its own: a program traced before would not be traced again.
    jax.make_jaxpr(jax.grad(lambda model: jnp.sum(model(ids))))(shared)
    assert len(calls) == 6


def test_chains_stay_where_rebuilding_does_not_pay():
    shape = mpo.MPOShape.low_rank(256, 256, 2)
    layer = nn.MPOLinear(shape, rngs=nnx.Rngs(0))
    assert mpo.plan(shape, tokens=64).strategy != "rebuild"
    assert nn.rebuilt_once(layer, tokens=64) is layer
    layer = nn.MPOLinear(mpo.MPOShape.balanced(16, 16, n=3), rngs=nnx.Rngs(0))
    assert mpo.plan(layer.shape, tokens=64).strategy == "rebuild"
    rebuilt = nn.rebuilt_once(layer, tokens=64)
    assert isinstance(rebuilt, nn.Dense)
    assert rebuilt.bias is layer.bias
    np.testing.assert_allclose(rebuilt.kernel[...], mpo.to_matrix(layer.all_cores(), layer.shape))


def test_gradients_reach_the_cores_through_a_rebuilt_module():
    shape = mpo.MPOShape.balanced(16, 16, n=3).with_bonds(3)
    block = nn.FeedForward(16, 16, shapes={"up": shape, "down": shape}, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (64, 16))
    direct = jax.jit(jax.grad(lambda b: jnp.sum(b(x) ** 2)))(block)
    rebuilt = jax.jit(jax.grad(lambda b: jnp.sum(nn.rebuilt_once(b, 64)(x) ** 2)))
    through = rebuilt(block)
    assert jax.tree.structure(direct) == jax.tree.structure(through)
    for a, b in zip(jax.tree.leaves(direct), jax.tree.leaves(through), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
