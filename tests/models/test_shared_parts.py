"""Layers that share some of their parameters: values, gradients, storage, packing of texts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, io, models, mpo, nn
from tests import marks
from tests.models import small

BASE = dataclasses.replace(
    small.BERT, num_layers=6, embedding_size=8, masked_lm=True, num_labels=2, dropout=0.0
)
ADAPTERS = ((r"layers/.*/attention/(query|out)|pooler|embeddings/projection", 2),)
KINDS = {
    "one block": {"layer_groups": 1, "shared_roles": ("central", "other")},
    "three blocks, biases per layer": {"layer_groups": 3, "shared_roles": ("central",)},
    "two blocks with adapters": {
        "layer_groups": 2,
        "shared_roles": ("central", "auxiliary", "other"),
        "adapters": ADAPTERS,
        "adapter_scale": 0.5,
    },
    "two blocks that share everything": {"layer_groups": 2},
    "as many blocks as layers": {"layer_groups": 6, "shared_roles": ("central", "other")},
}
IDS = jnp.asarray(np.random.default_rng(3).integers(1, 50, (2, 9)), jnp.int32)
MASK = jnp.asarray([[1] * 9, [1] * 6 + [0] * 3])
CORES = r"layers/.*"


def _config(kind: str) -> models.EncoderConfig:
    return dataclasses.replace(BASE, **KINDS[kind])


def _shapes(config):
    return {p: s for p, s in small.all_shapes(config).items() if p.startswith("layers/")}


def _model(kind: str, **changes):
    config = _config(kind)
    arrays_of = np.random.default_rng(0)
    shapes = _shapes(config)
    arrays = {
        name: (0.4 * arrays_of.standard_normal(size)).astype(np.float32)
        for name, size in models.array_shapes(config, shapes).items()
    }
    model = models.from_arrays(config, shapes, arrays)
    return models.reconfigure(model, **changes) if changes else model


@jax.jit
def run(model, **kwargs):
    return model(IDS, MASK, **kwargs)


def _loss(model):
    logits, order = model(IDS, MASK)
    return jnp.sum(jnp.square(logits)) + jnp.sum(jnp.square(order))


def _names_shared(config, name: str) -> str:
    """The name under which an array of the unshared model is stored in the shared one."""
    _, layer, rest = name.split("/", 2)
    first = int(layer) // config.block_size * config.block_size
    return f"layers/{first}/{rest}"


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_copies(kind):
    model = _model(kind)
    copies = models.unshared(model)
    assert copies.config.layer_groups is None
    for found, expected in zip(run(model), run(copies), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "remat"),
    # Of each block alone: test_blocks_receive_the_gradients_of_their_own_layers_alone.
    marks.slow_but(
        {("two blocks with adapters", True)},
        [
            ("one block", False),
            ("two blocks with adapters", True),
            ("two blocks that share everything", False),
        ],
    ),
)
def test_gradients_of_shared_parameters_are_sums_over_their_layers(kind, remat):
    model = _model(kind, remat=remat)
    found = models.to_arrays(jax.jit(jax.grad(_loss))(model))
    separate = models.to_arrays(jax.jit(jax.grad(_loss))(models.unshared(model)))
    summed: dict[str, np.ndarray] = {}
    for name, array in separate.items():
        own = name if name in found or not name.startswith("layers/") else None
        target = own or _names_shared(model.config, name)
        # The first layer of a block has the name of what the block shares.
        summed[target] = summed.get(target, 0.0) + np.asarray(array, np.float64)
    assert set(found) == set(summed)
    for name, array in found.items():
        scale = np.abs(summed[name]).max() + 1.0
        np.testing.assert_allclose(array, summed[name], rtol=0, atol=2e-4 * scale, err_msg=name)


def test_blocks_receive_the_gradients_of_their_own_layers_alone():
    """A change in the last block's layers leaves the gradient of nothing before it alone."""
    model = _model("three blocks, biases per layer")
    arrays = models.to_arrays(model)
    central = [name for name in arrays if name.endswith("query/cores/1")]
    assert central == [f"layers/{i}/attention/query/cores/1" for i in (0, 2, 4)]

    def last_alone(model):
        hidden = model.encoder(IDS, MASK)
        return jnp.sum(hidden * 0.0) + jnp.sum(_last_central(model) ** 2)

    gradient = models.to_arrays(jax.jit(jax.grad(last_alone))(model))
    assert not np.any(gradient[central[0]])
    assert np.any(gradient[central[2]])


def _last_central(model):
    return model.encoder.stacks[0].attention.query.cores[1][...][-1]


@pytest.mark.parametrize("kind", KINDS)
def test_central_cores_are_stored_and_counted_once_for_each_block(kind):
    model = _model(kind)
    config = model.config
    leaves = [
        leaf.shape
        for path, leaf in nnx.to_flat_state(nnx.state(model, nn.CentralCore))
        if path[-3:] == ("query", "cores", 1)
    ]
    assert len(leaves) == 1
    assert leaves[0][0] == config.layer_groups
    central = sum(shape.num_central_params for shape in _one_layer(model).values())
    assert models.count_parameters(model)["central"] == config.layer_groups * central


def _one_layer(model):
    return {p: s for p, s in model.shapes.items() if p.startswith("layers/0/")}


@pytest.mark.parametrize(
    "kind",
    marks.slow_but({"two blocks with adapters"}, ("one block", "two blocks with adapters")),
)
def test_dense_models_compute_the_same(kind):
    model = _model(kind)
    expected = run(model)
    on_host = compression.merge(model)
    in_program = jax.jit(models.merged)(model)
    assert not on_host.shapes
    assert not on_host.config.adapters
    for dense in (on_host, in_program):
        for found, value in zip(run(dense), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=2e-5)
    through = jax.jit(jax.grad(lambda m: _loss(models.merged(m))))(model)
    direct = jax.jit(jax.grad(_loss))(model)
    for a, b in zip(jax.tree.leaves(through), jax.tree.leaves(direct), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * (np.abs(b).max() + 1.0))


def test_the_scan_is_the_loop_over_layers():
    model = _model("two blocks with adapters")

    @jax.jit
    def loop(dense):
        hidden = dense.encoder.embeddings(IDS)
        stack = dense.encoder.stacks[0]
        for layer in range(6):
            block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stack)
            hidden, _, _ = block(hidden, models.Context(models.self_attention_mask(MASK)))
        return hidden

    scanned = jax.jit(lambda model: model.encoder(IDS, MASK))(model)
    np.testing.assert_allclose(scanned, loop(compression.merge(model)), rtol=1e-4, atol=2e-5)


def test_folders_keep_what_layers_share_once(tmp_path):
    model = _model("two blocks with adapters")
    io.save_pretrained(model, tmp_path / "m")
    again = io.load_pretrained(tmp_path / "m")
    assert again.config == model.config
    arrays = models.to_arrays(model)
    for name, array in models.to_arrays(again).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    stored = (tmp_path / "m" / "model.safetensors").stat().st_size
    numbers = sum(models.count_parameters(model).values())
    assert stored < 4 * numbers + 40_000


def test_packed_texts_are_computed_as_if_alone():
    model = _model("one block")
    first, second = IDS[:1, :4], IDS[:1, 4:]
    segments = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 2, 2]])
    packed = model.encoder(IDS[:1], None, segments=segments)
    alone = jnp.concatenate([model.encoder(first), model.encoder(second)], axis=1)
    np.testing.assert_allclose(packed, alone, rtol=1e-4, atol=1e-5)
    assert np.abs(packed - model.encoder(IDS[:1])).max() > 1e-3


def test_heads_read_the_places_that_are_named():
    model = _model("one block")
    places, firsts = jnp.asarray([[3, 1], [5, 0]]), jnp.asarray([[0, 4], [0, 2]])
    everywhere, first = run(model)
    logits, order = run(model, mlm_positions=places, sop_positions=firsts)
    expected = np.take_along_axis(np.asarray(everywhere), np.asarray(places)[..., None], 1)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert order.shape == (2, 2, 2)
    np.testing.assert_allclose(order[:, :1], first, rtol=1e-4, atol=1e-4)
    words_alone = models.build(
        dataclasses.replace(BASE, num_labels=None, pooling="none"), rngs=nnx.Rngs(0)
    )
    assert jax.eval_shape(lambda model: model(IDS), words_alone)[1] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_groups": 4}, "num_layers=6 cannot be divided into layer_groups=4"),
        ({"layer_groups": 0}, "layer_groups=0 must be an integer from 1"),
        ({"shared_roles": ("middle",)}, "each one of 'central'"),
        ({"adapters": (("layers/0/attention/quary", 2),)}, "matches no matrix"),
        (
            {"adapters": (("embeddings/word", 2),)},
            r"\(tables, heads and experts have no adapters\)",
        ),
        ({"adapters": (("pooler", 0),)}, "rank=0 must be an integer of at least 1"),
        ({"masked_lm": True, "head": "span", "num_labels": None}, "goes with head='classifier'"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **changes)


def test_layers_of_a_block_must_have_equal_shapes():
    config = _config("one block")
    shapes = _shapes(config)
    shapes["layers/2/attention/query"] = shapes["layers/2/attention/query"].with_bonds(3)
    with pytest.raises(ValueError, match="layers 0 and 2 share parameters"):
        models.array_shapes(config, shapes)


def test_shared_parts_cannot_be_compressed_by_matrix():
    with pytest.raises(ValueError, match=r"compress models.unshared\(model\)"):
        compression.compress(_model("one block"), [("pooler", {})])


def test_blocks_with_other_shapes_are_stacks_of_their_own():
    config = dataclasses.replace(BASE, layer_groups=3, shared_roles=("central", "other"))
    shapes = _shapes(config)
    for path in list(shapes):
        if path.startswith(("layers/2/", "layers/3/")):
            shapes[path] = shapes[path].with_bonds(3)
    model = models.build(config, shapes, rngs=nnx.Rngs(0))
    assert model.encoder.stack_ranges == (range(2), range(2, 4), range(4, 6))
    copies = models.unshared(model)
    np.testing.assert_allclose(run(model)[0], run(copies)[0], rtol=1e-4, atol=1e-5)


def test_random_layers_do_not_depend_on_what_is_shared():
    plain = models.build(dataclasses.replace(BASE, num_labels=None), rngs=nnx.Rngs(0))
    config = dataclasses.replace(
        BASE, num_labels=None, layer_groups=2, shared_roles=("other",), adapters=()
    )
    shared = models.to_arrays(models.build(config, rngs=nnx.Rngs(0)))
    for name, array in shared.items():
        np.testing.assert_array_equal(array, models.to_arrays(plain)[name], err_msg=name)


def test_shape_of_a_full_chain_is_exact_where_shared():
    """Rebuilding in float32 around a shared core keeps single precision, float64 double."""
    shape = mpo.MPOShape.balanced(48, 64, n=5)
    w = np.random.default_rng(0).standard_normal((48, 64))
    cores = mpo.decompose(w, shape)
    assert np.linalg.norm(mpo.to_matrix(cores, shape) - w) / np.linalg.norm(w) < 1e-13
    small_cores = tuple(core.astype(np.float32) for core in cores)
    rebuilt = mpo.to_matrix(small_cores, shape)
    assert np.linalg.norm(rebuilt - w) / np.linalg.norm(w) < 1e-5
