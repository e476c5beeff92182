"""The encoder: order of layers, stacks, masks, dropout, remat, dtypes, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import models, mpo

CONFIG = models.EncoderConfig(
    vocab_size=50,
    hidden_size=8,
    num_layers=4,
    num_heads=2,
    intermediate_size=16,
    max_positions=12,
    dropout=0.2,
    attention_dropout=0.2,
    pooling="none",
)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, 6)))
MASK = jnp.asarray([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
SQUARE = mpo.MPOShape.balanced(8, 8, n=3)

run = jax.jit(lambda model, *args, **kwargs: model(*args, **kwargs))


@pytest.fixture(scope="module")
def arrays():
    """Random parameters, different in every layer, norms and biases included."""
    rng = np.random.default_rng(1)
    shapes = models.array_shapes(CONFIG)
    return {
        name: (rng.standard_normal(shape) * (1.0 if "norm" in name else 0.3)).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def dense(arrays):
    return models.from_arrays(CONFIG, {}, arrays)


def _with_chains(arrays, paths, config=CONFIG):
    """The same function with some matrices as full-bond chains."""
    arrays = dict(arrays)
    shapes = {}
    for path in paths:
        shape = SQUARE if "attention" in path else None
        key = f"{path}/kernel" if f"{path}/kernel" in arrays else f"{path}/table"
        w = arrays.pop(key)
        shapes[path] = shape or mpo.MPOShape.balanced(*w.shape, n=3)
        cores = mpo.decompose(w, shapes[path])
        arrays.update({f"{path}/cores/{k}": core for k, core in enumerate(cores)})
    return models.from_arrays(config, shapes, arrays)


def _norm(x, arrays, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.norm_eps)
    return x * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]


def _written_out(arrays, ids, mask):
    """The encoder in numpy float64, layer after layer by index."""
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    linear = lambda x, name: x @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"]  # noqa: E731
    x = arrays["embeddings/word/table"][ids] + arrays["embeddings/token_type/table"][0]
    x = _norm(x + arrays["embeddings/position/table"][: ids.shape[1]], arrays, "embeddings/norm")
    for i in range(CONFIG.num_layers):
        name = f"layers/{i}/attention"
        split = (*ids.shape, CONFIG.num_heads, -1)
        q, k, v = (linear(x, f"{name}/{part}").reshape(split) for part in ("query", "key", "value"))
        scores = np.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(mask[:, None, None, :] > 0, scores, -1e30)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("bnqk,bknd->bqnd", weights, v).reshape(x.shape)
        x = _norm(x + linear(mixed, f"{name}/out"), arrays, f"layers/{i}/attention_norm")
        inner = linear(x, f"layers/{i}/feed_forward/up")
        inner = np.asarray(jax.nn.gelu(jnp.asarray(inner, jnp.float32), approximate=False))
        mapped = linear(inner, f"layers/{i}/feed_forward/down")
        x = _norm(x + mapped, arrays, f"layers/{i}/feed_forward_norm")
    return x


def test_layers_run_in_their_order(dense, arrays):
    expected = _written_out(arrays, np.asarray(IDS), np.asarray(MASK))
    np.testing.assert_allclose(run(dense, IDS, MASK), expected, rtol=1e-4, atol=1e-4)
    swapped = {}
    for name, array in arrays.items():
        other = name.replace("layers/1/", "layers/X/").replace("layers/2/", "layers/1/")
        swapped[other.replace("layers/X/", "layers/2/")] = array
    assert np.abs(run(models.from_arrays(CONFIG, {}, swapped), IDS, MASK) - expected).max() > 0.1


@pytest.mark.parametrize(
    ("paths", "depths"),
    [
        (["layers/1/attention/query"], [1, 1, 2]),
        (["layers/0/attention/out", "layers/3/feed_forward/up"], [1, 2, 1]),
        ([f"layers/{i}/attention/{n}" for i in range(4) for n in ("query", "out")], [4]),
        (["embeddings/word", "embeddings/position", "embeddings/token_type"], [4]),
    ],
    ids=["one layer", "both ends", "every layer", "tables"],
)
def test_any_matrix_may_be_a_chain(dense, arrays, paths, depths):
    model = _with_chains(arrays, paths)
    assert [stack.attention_norm.scale.shape[0] for stack in model.stacks] == depths
    assert sorted(model.shapes) == sorted(paths)
    np.testing.assert_allclose(run(model, IDS, MASK), run(dense, IDS, MASK), rtol=1e-4, atol=1e-4)


def test_dropout_needs_a_key_and_differs_by_layer(dense, arrays):
    key = jax.random.key(0)
    plain = run(dense, IDS, MASK)
    dropped = run(dense, IDS, MASK, dropout_key=key)
    np.testing.assert_array_equal(plain, run(dense, IDS, MASK))
    np.testing.assert_array_equal(dropped, run(dense, IDS, MASK, dropout_key=key))
    assert np.abs(dropped - plain).max() > 0.1
    assert np.abs(dropped - run(dense, IDS, MASK, dropout_key=jax.random.key(1))).max() > 0.1
    # Keys belong to layers, not to stacks: cutting the stack in two changes nothing.
    split = _with_chains(arrays, ["layers/1/attention/query"])
    again = run(split, IDS, MASK, dropout_key=key)
    np.testing.assert_allclose(again, dropped, rtol=1e-4, atol=1e-4)


def test_layers_do_not_repeat_a_dropout_pattern():
    """Identity layers: what is left of a constant shows which positions each layer dropped."""
    config = dataclasses.replace(CONFIG, num_layers=2, dropout=0.5, attention_dropout=0.0)
    shapes = models.array_shapes(config)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    patterns = []
    for layer in (0, 1):
        changed = dict(arrays)
        for i in (0, 1):
            changed[f"layers/{i}/attention_norm/scale"] = np.ones(8, np.float32)
            changed[f"layers/{i}/feed_forward_norm/scale"] = np.ones(8, np.float32)
        changed[f"layers/{layer}/feed_forward/down/bias"] = np.ones(8, np.float32)
        model = models.from_arrays(config, {}, changed)
        patterns.append(np.asarray(run(model, IDS, dropout_key=jax.random.key(3))) > 0)
    assert 0.2 < patterns[0].mean() < 0.8
    assert (patterns[0] != patterns[1]).mean() > 0.2


def test_remat_changes_no_value_and_no_gradient(dense):
    rematerialised = models.reconfigure(dense, remat=True)
    key = jax.random.key(0)

    @jax.jit
    def value_and_gradient(model):
        return jax.value_and_grad(lambda m: jnp.sum(m(IDS, MASK, dropout_key=key) ** 2))(model)

    (value, gradient), (value_r, gradient_r) = map(value_and_gradient, (dense, rematerialised))
    np.testing.assert_allclose(value, value_r, rtol=1e-5)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_r), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    text = str(jax.make_jaxpr(lambda m: jax.grad(lambda m: jnp.sum(m(IDS)))(m))(rematerialised))
    assert "remat" in text or "checkpoint" in text


def test_bfloat16_is_near_and_parameters_stay_float32(dense, arrays):
    for model in (dense, _with_chains(arrays, ["layers/1/attention/query", "embeddings/word"])):
        half = models.reconfigure(model, dtype="bfloat16")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"float32"}
        y = run(half, IDS, MASK)
        assert y.dtype == jnp.bfloat16
        exact = run(model, IDS, MASK)
        error = jnp.linalg.norm(y.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
        assert error < 0.05


def test_padding_does_not_matter(dense):
    mask = np.asarray(MASK)
    other = jnp.where(MASK == 1, IDS, 7)
    before, after = run(dense, IDS, MASK), run(dense, other, MASK)
    np.testing.assert_array_equal(before[mask == 1], after[mask == 1])
    shorter = run(dense, IDS[1:, :3], MASK[1:, :3])
    np.testing.assert_allclose(before[1:, :3], shorter, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(run(dense, IDS, MASK.astype(bool)), before)


def test_rows_of_padding_alone_stay_finite(dense):
    mask = MASK.at[0].set(0)

    @jax.jit
    def value_and_gradient(model):
        return jax.value_and_grad(lambda m: jnp.sum(m(IDS, mask) ** 2))(model)

    value, gradient = value_and_gradient(dense)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_array_equal(run(dense, IDS, mask)[1], run(dense, IDS, MASK)[1])


def test_token_types_select_their_row(dense):
    zeros, ones = jnp.zeros_like(IDS), jnp.ones_like(IDS)
    np.testing.assert_array_equal(run(dense, IDS, MASK, zeros), run(dense, IDS, MASK))
    assert np.abs(run(dense, IDS, MASK, ones) - run(dense, IDS, MASK)).max() > 1e-2


def test_a_second_call_is_not_traced_again(dense):
    traces = []

    @jax.jit
    def forward(model, ids):
        traces.append(1)
        return model(ids)

    for step in range(3):
        forward(dense, IDS + step)
    assert len(traces) == 1


def test_random_layers_do_not_depend_on_the_stacks():
    whole = models.Encoder(CONFIG, rngs=nnx.Rngs(0))
    split = models.Encoder(CONFIG, {"layers/0/attention/query": SQUARE}, rngs=nnx.Rngs(0))
    one, two = models.to_arrays(whole), models.to_arrays(split)
    for layer in (1, 3):
        name = f"layers/{layer}/feed_forward/up/kernel"
        np.testing.assert_array_equal(one[name], two[name])
    assert not np.array_equal(
        one["layers/1/feed_forward/up/kernel"], one["layers/2/feed_forward/up/kernel"]
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            (jnp.zeros((6,), int),),
            r"input_ids has shape \(6,\) .*it must be integers",
        ),
        ((jnp.zeros((1, 13), int),), "13 tokens is longer than max_positions=12"),
        ((IDS, MASK[:, :3]), r"attention_mask has shape \(2, 3\); it must be that of its ids"),
        ((IDS, MASK, IDS[:1]), r"token_type_ids has shape \(1, 6\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(dense, args, message):
    with pytest.raises(ValueError, match=message):
        dense(*args)


def test_a_token_outside_the_vocabulary_is_loud(dense):
    assert np.isnan(run(dense, IDS.at[0, 0].set(50))).any()


def test_similarity_is_the_mean_cosine_of_mean_vectors(dense, arrays):
    changed = dict(arrays)
    changed["layers/1/feed_forward_norm/bias"] = changed["layers/1/feed_forward_norm/bias"][::-1]
    other = models.from_arrays(dense.config, {}, changed)
    ids = np.arange(1, 13).reshape(3, 4)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask}
    vectors = []
    for model in (dense, other):
        hidden = np.asarray(model(jnp.asarray(ids), jnp.asarray(mask)), np.float64)
        vectors.append(np.stack([hidden[0].mean(0), hidden[1, :2].mean(0)]))
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in vectors)
    wanted = np.mean(np.sum(u * v, axis=1))  # the last row is padding alone
    assert wanted < 0.9999
    np.testing.assert_allclose(models.similarity(dense, other, [batch]), wanted, atol=1e-5)
    np.testing.assert_allclose(models.similarity(dense, dense, [batch]), 1.0, atol=1e-5)
    with pytest.raises(ValueError, match="at least one text"):
        models.similarity(dense, other, [batch | {"example_mask": np.zeros(3, bool)}])
