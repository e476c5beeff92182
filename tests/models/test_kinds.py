"""What every kind of encoder must do: chains anywhere, flat arrays, merging, surgery, folders."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, io, models
from tests import marks
from tests.models import small

IDS = jnp.asarray(np.random.default_rng(0).integers(1, 50, (2, 6)))
MASK = jnp.asarray([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])

run = jax.jit(lambda model, *args, **kwargs: model(*args, **kwargs))


@functools.cache
def pair(kind: str):
    """A dense classifier, and the same function with every matrix a chain."""
    config = dataclasses.replace(small.KINDS[kind], num_labels=3)
    dense = small.random_model(config)
    return dense, small.random_model(config, small.all_shapes(config))


@functools.cache
def logits(kind: str) -> np.ndarray:
    return np.asarray(run(pair(kind)[0], IDS, MASK))


# BERT is what `test_encoder`, `test_arrays`, `test_rebuild` and the tests of surgery are about.
every_kind = pytest.mark.parametrize("kind", [kind for kind in small.KINDS if kind != "bert"])
# Those that differ from it by more than what they lack.
OWN = ("albert", "mobilebert")
own_layers = pytest.mark.parametrize("kind", OWN)
# With layers like those of BERT in all but what they lack.
other_kinds = pytest.mark.parametrize(
    "kind",
    marks.slow_but(
        {*OWN, "modernbert", "deberta-v2"}, [kind for kind in small.KINDS if kind != "bert"]
    ),
)


def _same(one, other):
    assert one.config == other.config
    assert one.shapes == other.shapes
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def _close(actual, kind):
    expected = logits(kind)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@other_kinds
def test_every_matrix_may_be_a_chain(kind):
    dense, chains = pair(kind)
    assert set(chains.shapes) == set(dense.config.matrix_sizes())
    # Of matrices there are no others: what is left dense are vectors and rows of distances.
    for name, array in models.to_arrays(chains).items():
        of_distances = name in ("relative_bias/table", "distance_rows/table")
        assert "/cores/" in name or array.ndim == 1 or of_distances
    _close(run(chains, IDS, MASK), kind)


@every_kind
def test_flat_arrays_and_back(kind):
    for model in pair(kind):
        arrays = models.to_arrays(model)
        assert {n: a.shape for n, a in arrays.items()} == models.array_shapes(
            model.config, model.shapes
        )
        _same(models.from_arrays(model.config, model.shapes, arrays), model)
        total = sum(models.count_parameters(model).values())
        assert total == sum(array.size for array in arrays.values())


@other_kinds
def test_merging_gives_the_dense_arrays(kind):
    dense, chains = pair(kind)
    expected = models.to_arrays(dense)
    for merged in (compression.merge(chains), jax.jit(models.merged)(chains)):
        assert merged.shapes == {}
        arrays = models.to_arrays(merged)
        assert set(arrays) == set(expected)
        for name, array in arrays.items():
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5, err_msg=name)
    kept = jax.eval_shape(functools.partial(models.merged, keep="embeddings/.*"), chains)
    assert set(kept.shapes) == {p for p in chains.shapes if p.startswith("embeddings/")}


@own_layers
def test_compress_by_rules(kind):
    dense, _ = pair(kind)
    model, report = compression.compress(dense, [(".*", {"cores": 3})])
    assert [row.path for row in report.rows] == list(dense.config.matrix_sizes())
    _close(run(model, IDS, MASK), kind)
    smaller, report = compression.compress(dense, [("layers/.*|embeddings/word", {})], budget=0.7)
    total = sum(models.count_parameters(smaller).values())
    assert report.parameters == total <= 0.7 * report.dense_parameters


@every_kind
def test_save_and_load(kind, tmp_path):
    for index, model in enumerate(pair(kind)):
        io.save_pretrained(model, tmp_path / str(index))
        _same(io.load_pretrained(tmp_path / str(index)), model)


@own_layers
def test_reconfigure_keeps_the_function(kind):
    _, chains = pair(kind)
    again = models.reconfigure(chains, remat=True, dropout=0.5, attention_dropout=0.0)
    np.testing.assert_array_equal(run(again, IDS, MASK), run(chains, IDS, MASK))
    half = models.reconfigure(chains, dtype="bfloat16")
    error = np.linalg.norm(run(half, IDS, MASK) - logits(kind)) / np.linalg.norm(logits(kind))
    assert error < 0.1
    key = jax.random.key(0)
    dropped = run(again, IDS, MASK, dropout_key=key)
    np.testing.assert_array_equal(dropped, run(again, IDS, MASK, dropout_key=key))
    assert np.abs(dropped - logits(kind)).max() > 1e-2


@own_layers
def test_gradients_reach_every_parameter(kind):
    _, chains = pair(kind)
    gradient = jax.jit(jax.grad(lambda m: jnp.sum(jnp.square(m(IDS, MASK)))))(chains)
    for path, leaf in nnx.to_flat_state(nnx.state(gradient)):
        assert np.isfinite(leaf[...]).all()
        key_bias = path[-3:] == ("attention", "key", "bias")  # Softmax ignores a constant.
        assert key_bias or np.abs(leaf[...]).max() > 0, path


@own_layers
def test_heads(kind):
    dense, chains = pair(kind)
    for head, shape in (("classifier", (2, 1)), ("span", (2, 6, 2))):
        model = models.with_head(chains, shape[-1], pooling="pooler", head=head, rngs=nnx.Rngs(1))
        out = run(model, IDS, MASK)
        assert (out.shape, out.dtype) == (shape, jnp.float32)
        assert (model.encoder.pooler is None) == (head == "span")
        assert ("pooler" in model.shapes) == (head == "classifier")
    hidden = run(model.encoder, IDS, MASK)
    head = models.to_arrays(model)
    expected = np.asarray(hidden) @ head["head/kernel"] + head["head/bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    # And back: a fresh pooler where the span model has none.
    again = models.with_head(model, 2, pooling="pooler", rngs=nnx.Rngs(2))
    assert isinstance(again, models.SequenceClassifier)
    assert again.encoder.pooler is not None
    with pytest.raises(ValueError, match="needs a sentence vector"):
        models.with_head(model, 2, rngs=nnx.Rngs(2))
    encoder = dataclasses.replace(dense.config, num_labels=None)
    assert isinstance(models.build(encoder, rngs=nnx.Rngs(0)), models.Encoder)


def test_poolers_have_their_activation():
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 16))
    for kind, activation in (("bert", np.tanh), ("distilbert", lambda x: np.maximum(x, 0))):
        encoder = pair(kind)[0].encoder
        arrays = models.to_arrays(encoder)
        raw = np.asarray(hidden[:, 0]) @ arrays["pooler/kernel"] + arrays["pooler/bias"]
        np.testing.assert_allclose(
            models.pool(encoder, hidden, None), activation(raw), rtol=1e-4, atol=1e-5
        )


def test_dropout_before_a_span_head_is_the_classifiers():
    config = dataclasses.replace(
        small.BERT, dropout=0.0, attention_dropout=0.0, pooling="none", head="span", num_labels=2
    )
    model = small.random_model(config)
    plain = run(model, IDS, MASK)
    key = jax.random.key(0)
    np.testing.assert_array_equal(run(model, IDS, MASK, dropout_key=key), plain)
    wet = models.reconfigure(model, classifier_dropout=0.5)
    assert np.abs(run(wet, IDS, MASK, dropout_key=key) - plain).max() > 1e-2


def test_token_types_of_a_model_without_are_not_read():
    model = pair("distilbert")[0]
    assert "embeddings/token_type/table" not in models.to_arrays(model)
    np.testing.assert_array_equal(run(model, IDS, MASK, jnp.ones_like(IDS)), logits("distilbert"))
    with pytest.raises(ValueError, match="token_type_ids has shape"):
        model(IDS, MASK, IDS[:1])


def test_layers_of_a_bottleneck_stay_in_one_scan():
    model = pair("mobilebert")[1]
    assert len(model.encoder.stacks) == 1
    sizes = []
    for depth in (2, 4):
        config = dataclasses.replace(small.MOBILEBERT, num_layers=depth)
        abstract = nnx.eval_shape(
            lambda c=config: models.build(c, small.all_shapes(c), rngs=nnx.Rngs(0))
        )
        sizes.append(len(str(jax.make_jaxpr(lambda m: m(IDS))(abstract)).splitlines()))
    assert sizes[0] == sizes[1]


def test_stacks_can_be_broken_on_purpose():
    model = pair("bert")[0]
    broken = models.reconfigure(model, scan_boundaries=(1, 2))
    assert len(broken.encoder.stacks) == 3
    np.testing.assert_allclose(run(broken, IDS, MASK), run(model, IDS, MASK), atol=1e-4)
    assert models.array_shapes(broken.config) == models.array_shapes(model.config)
