"""The flat dict border, counts, heads and pooling."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import models, mpo

CONFIG = models.EncoderConfig(
    vocab_size=50, hidden_size=8, num_layers=3, num_heads=2, intermediate_size=16, max_positions=12
)
SHAPES = {
    "embeddings/word": mpo.MPOShape.balanced(50, 8, n=3).with_bonds(4),
    "layers/0/attention/query": mpo.MPOShape.balanced(8, 8, n=5),
    "layers/1/attention/query": mpo.MPOShape.balanced(8, 8, n=5),
    "layers/2/feed_forward/down": mpo.MPOShape.low_rank(16, 8, 3),
    "pooler": mpo.MPOShape.balanced(8, 8, n=3),
}
IDS = jnp.asarray([[1, 2, 3], [4, 5, 0]])
MASK = jnp.asarray([[1, 1, 1], [1, 1, 0]])


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    arrays = {
        name: (0.3 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in models.array_shapes(CONFIG, SHAPES).items()
    }
    return models.from_arrays(CONFIG, SHAPES, arrays)


def test_arrays_and_back_is_the_same_model(model):
    arrays = models.to_arrays(model)
    again = models.from_arrays(CONFIG, SHAPES, arrays)
    assert again.config == model.config
    assert again.shapes == model.shapes == SHAPES
    assert jax.tree.structure(again) == jax.tree.structure(model)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)
    kinds = [[type(v) for _, v in nnx.to_flat_state(nnx.state(m))] for m in (again, model)]
    assert kinds[0] == kinds[1]


def test_paths_name_layers_and_cores(model):
    arrays = models.to_arrays(model)
    assert {name: a.shape for name, a in arrays.items()} == models.array_shapes(CONFIG, SHAPES)
    for path, shape in SHAPES.items():
        cores = [arrays[f"{path}/cores/{k}"].shape for k in range(shape.num_cores)]
        assert cores == list(shape.core_shapes)
        assert f"{path}/kernel" not in arrays
        assert f"{path}/table" not in arrays
    assert arrays["layers/2/attention/query/kernel"].shape == (8, 8)
    assert "layers/0/attention/query/bias" in arrays
    order = [name for name in arrays if name.endswith("attention/out/kernel")]
    assert order == [f"layers/{i}/attention/out/kernel" for i in range(3)]


def test_from_arrays_copies(model):
    arrays = {name: np.array(a) for name, a in models.to_arrays(model).items()}
    built = models.from_arrays(CONFIG, SHAPES, arrays)
    for array in arrays.values():
        array.fill(7.0)
    np.testing.assert_array_equal(built.embeddings.norm.bias[...], model.embeddings.norm.bias[...])
    np.testing.assert_array_equal(
        built.stacks[0].attention.key.kernel[...], model.stacks[0].attention.key.kernel[...]
    )


def test_arrays_of_a_file_are_let_go_of(model):
    arrays = models.to_arrays(model)
    again = models.from_arrays(CONFIG, SHAPES, arrays, release=True)
    assert not arrays
    for name, array in models.to_arrays(model).items():
        np.testing.assert_array_equal(models.to_arrays(again)[name], array)


def test_every_misfit_is_named_at_once(model):
    arrays = models.to_arrays(model)
    del arrays["layers/1/attention/key/bias"]
    del arrays["pooler/cores/2"]
    arrays["layers/7/attention/key/bias"] = np.zeros(8, np.float32)
    arrays["embeddings/norm/scale"] = np.zeros(9, np.float32)
    arrays["embeddings/norm/bias"] = np.zeros(8, np.int32)
    with pytest.raises(ValueError, match="do not fit the model") as error:
        models.from_arrays(CONFIG, SHAPES, arrays)
    lines = str(error.value).splitlines()[1:]
    assert sorted(line.strip() for line in lines) == [
        "missing: layers/1/attention/key/bias",
        "missing: pooler/cores/2",
        "not floating point: embeddings/norm/bias is int32",
        "shape mismatch: embeddings/norm/scale is (9,), must be (8,)",
        "unexpected: layers/7/attention/key/bias",
    ]


@pytest.mark.parametrize("kinds", range(1, 5))
def test_lists_of_mismatches_are_short(kinds):
    """Counts of all, names of the first of each kind, ten lines with the one above."""
    made = {f"a{i}": np.zeros(2, np.float32) for i in range(80)}
    expected = dict.fromkeys(made, (2,))
    given = dict(made) if kinds > 1 else {}
    if kinds > 1:
        given |= {f"b{i}": np.zeros(1) for i in range(40)}
        given = {name: array for name, array in given.items() if name not in list(made)[:20]}
    if kinds > 2:
        given |= {f"a{i}": np.zeros(3, np.float32) for i in range(20, 30)}
    if kinds > 3:
        given |= {f"a{i}": np.zeros(2, np.int8) for i in range(30, 31)}
    with pytest.raises(ValueError, match=r"^what \(") as error:
        models.check_coverage(expected, given, "what")
    lines = str(error.value).splitlines()
    assert len(lines) <= 10
    counts = [
        "80 missing" if kinds == 1 else "20 missing",
        "40 unexpected",
        "10 shape mismatch",
        "1 not floating point",
    ]
    assert lines[0] == f"what ({', '.join(counts[:kinds])}):"
    assert lines[1] == "  missing: a0"
    most = 9 // kinds
    assert lines[most] == f"  missing: {(80 if kinds == 1 else 20) - most + 1} more"
    if kinds == 4:
        assert lines[-1] == "  not floating point: a30 is int8"


def test_what_is_done_to_an_abstract_model_does_not_reach_the_next_one():
    """It is traced once for all."""
    one, sizes = models.abstract(CONFIG, SHAPES), models.array_shapes(CONFIG, SHAPES)
    for variable in jax.tree.leaves(nnx.state(one), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        variable.set_value(jax.ShapeDtypeStruct((1,), jnp.float32))
    one.config = None
    assert models.abstract(CONFIG, SHAPES).config == CONFIG
    assert models.array_shapes(CONFIG, SHAPES) == sizes


def test_the_border_can_be_differentiated(model):
    """from_arrays and to_arrays also work on traced arrays."""
    arrays = {name: jnp.asarray(a) for name, a in models.to_arrays(model).items()}

    @jax.jit
    def gradient(arrays):
        def loss(arrays):
            return jnp.sum(models.from_arrays(CONFIG, SHAPES, arrays)(IDS) ** 2)

        return jax.grad(loss)(arrays)

    direct = jax.jit(jax.grad(lambda m: jnp.sum(m(IDS) ** 2)))(model)
    through = gradient(arrays)
    for name, array in models.to_arrays(direct).items():
        np.testing.assert_allclose(through[name], array, rtol=1e-3, atol=1e-4)
    roundtrip = jax.jit(lambda m: models.to_arrays(m))(model)
    np.testing.assert_array_equal(
        roundtrip["layers/2/attention/out/kernel"], arrays["layers/2/attention/out/kernel"]
    )


def test_parameters_are_counted_by_role(model):
    counts = models.count_parameters(model)
    central = sum(s.num_central_params for s in SHAPES.values())
    chains = sum(s.num_params for s in SHAPES.values())
    assert counts["central"] == central
    assert counts["auxiliary"] == chains - central
    assert counts["adapter"] == 0
    total = sum(math.prod(shape) for shape in models.array_shapes(CONFIG, SHAPES).values())
    assert sum(counts.values()) == total
    dense = nnx.eval_shape(lambda: models.Encoder(CONFIG, rngs=nnx.Rngs(0)))
    dense = models.count_parameters(dense)
    layer = 4 * (64 + 8) + (128 + 16) + (128 + 8) + 4 * 8
    assert dense == {
        "central": 0,
        "auxiliary": 0,
        "adapter": 0,
        "other": (50 + 12 + 2) * 8 + 16 + 3 * layer + 64 + 8,
    }


@pytest.mark.parametrize("pooling", ["pooler", "mean", "first"])
def test_pooling(model, pooling):
    hidden = np.random.default_rng(0).standard_normal((2, 3, 8), np.float32)
    pool = jax.jit(models.pool)
    if pooling == "pooler":
        pooled = pool(model, hidden, MASK)
        w = mpo.to_matrix([np.asarray(c) for c in model.pooler.all_cores()], SHAPES["pooler"])
        bias = np.asarray(model.pooler.bias[...])
        np.testing.assert_allclose(pooled, np.tanh(hidden[:, 0] @ w + bias), rtol=1e-4, atol=1e-5)
        return
    other = models.Encoder(dataclasses.replace(CONFIG, pooling=pooling), rngs=nnx.Rngs(0))
    assert other.pooler is None
    pooled = pool(other, hidden, MASK)
    if pooling == "first":
        np.testing.assert_array_equal(pooled, hidden[:, 0])
        return
    expected = np.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pool(other, hidden, MASK * 0), np.zeros((2, 8)))


def test_a_head_is_put_on_an_encoder(model):
    classifier = models.with_head(model, 3, pooling="mean", rngs=nnx.Rngs(5))
    assert classifier.encoder.pooler is None
    assert classifier.config.num_labels == 3
    assert sorted(classifier.shapes) == sorted(set(SHAPES) - {"pooler"})
    kept, before = models.to_arrays(classifier), models.to_arrays(model)
    assert set(kept) - set(before) == {"head/kernel", "head/bias"}
    for name in set(kept) & set(before):
        np.testing.assert_array_equal(kept[name], before[name])
    hidden = model(IDS, MASK)
    vector = np.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])
    expected = vector @ kept["head/kernel"] + kept["head/bias"]
    logits = classifier(IDS, MASK)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(classifier(IDS, MASK, dropout_key=jax.random.key(0)), logits)


def test_a_head_may_be_a_chain_and_is_replaced():
    config = dataclasses.replace(CONFIG, num_labels=4)
    shapes = {"head": mpo.MPOShape.low_rank(8, 4, 2)}
    classifier = models.build(config, shapes, rngs=nnx.Rngs(0))
    arrays = models.to_arrays(classifier)
    assert arrays["head/cores/1"].shape == (2, 1, 4, 1)
    again = models.from_arrays(config, shapes, arrays)
    np.testing.assert_array_equal(again(IDS), classifier(IDS))
    replaced = models.with_head(classifier, 2, rngs=nnx.Rngs(0))
    assert replaced(IDS).shape == (2, 2)
    assert replaced.shapes == {}
    with pytest.raises(ValueError, match=r"needs config\.num_labels"):
        models.SequenceClassifier(CONFIG, rngs=nnx.Rngs(0))
    none = models.Encoder(dataclasses.replace(CONFIG, pooling="none"), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="makes no sentence vector"):
        models.pool(none, jnp.zeros((1, 2, 8)), None)


def test_reconfigure_keeps_parameters(model):
    changed = models.reconfigure(model, dropout=0.0, remat=True)
    assert (changed.config.dropout, changed.config.remat) == (0.0, True)
    np.testing.assert_array_equal(changed(IDS, MASK), model(IDS, MASK))
    with pytest.raises(ValueError, match="missing: layers/3/"):
        models.reconfigure(model, num_layers=4)
