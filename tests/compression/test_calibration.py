"""Calibration: covariances against captured inputs, padding, gradients, every architecture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, models, training
from mpojax.nn import positions
from tests.io import helpers, language_helpers
from tests.models import small_language

IDS = np.random.default_rng(0).integers(0, 40, (4, 7))
MASK = (np.arange(7) < np.array([[7], [3], [5], [1]])).astype(np.int32)
BATCH = {"input_ids": IDS, "attention_mask": MASK}


@pytest.fixture(scope="module")
def dense():
    return helpers.model()


@pytest.fixture(scope="module")
def calibration(dense):
    return compression.calibrate(dense, [BATCH])


@jax.jit
def layer_inputs(model):
    """What enters each linear map of layer 0, by calling its parts one by one."""
    layer = jax.tree.map(lambda parameter: parameter[0], model.stacks[0])
    x = model.embeddings(jnp.asarray(IDS))
    attention, block = layer.attention, layer.feed_forward
    mixed = []
    real, attention.out = attention.out, lambda y: mixed.append(y) or real(y)
    attended = attention(x, models.self_attention_mask(jnp.asarray(MASK)))
    y = layer.attention_norm(x + attended)
    inner = jax.nn.gelu(block.up(y), approximate=False)
    return {
        "attention/query": x,
        "attention/key": x,
        "attention/value": x,
        "attention/out": mixed[0],
        "feed_forward/up": y,
        "feed_forward/down": inner,
    }


def test_covariances_are_those_of_the_inputs_without_padding(dense, calibration):
    real = MASK > 0
    for name, x in layer_inputs(dense).items():
        rows = np.asarray(x, np.float64)[real]
        entry = calibration.statistics[f"layers/0/{name}"]
        assert entry.count == real.sum() == 16
        np.testing.assert_allclose(entry.covariance, rows.T @ rows / 16, rtol=1e-4, atol=1e-5)
        assert entry.covariance.dtype == np.float64
        assert entry.gradient is None
    assert calibration.num_examples == 4


def test_tables_have_the_frequencies_of_their_rows(calibration):
    real = MASK > 0
    words = np.bincount(IDS[real], minlength=40) / 16
    np.testing.assert_allclose(calibration.covariance("embeddings/word"), words, atol=1e-7)
    positions = np.append(MASK.sum(axis=0), np.zeros(9)) / 16
    np.testing.assert_allclose(calibration.covariance("embeddings/position"), positions, atol=1e-7)
    np.testing.assert_array_equal(calibration.covariance("embeddings/token_type"), [1.0, 0.0])


def test_query_key_and_value_share_one_covariance(calibration):
    query, key, value, out = (
        calibration.covariance(f"layers/1/attention/{n}") for n in ("query", "key", "value", "out")
    )
    assert query is key is value
    assert query is not out


def test_batches_add_up_and_masked_examples_do_not_count(dense, calibration):
    halves = [BATCH | {"example_mask": np.isin(np.arange(4), part)} for part in ([0, 1], [2, 3])]
    other = compression.calibrate(dense, halves)
    assert other.num_examples == 4
    for path, entry in calibration.statistics.items():
        found = other.statistics[path]
        assert found.count == entry.count
        np.testing.assert_allclose(found.covariance, entry.covariance, rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_was(dense, calibration):
    before, after = helpers.arrays(), models.to_arrays(dense)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    assert type(dense.embeddings.word).__name__ == "Embed"
    del calibration


CLASSIFIER = dataclasses.replace(helpers.SETTINGS, num_labels=3, pooling="pooler", dropout=0.0)


def squared_logits(model, batch, key):
    logits = model(batch["input_ids"], batch["attention_mask"], None, key)
    return jnp.mean(batch["scale"] * jnp.sum(logits**2, axis=-1)), {"other": jnp.zeros(())}


def test_gradients_are_those_of_the_summed_loss():
    """Of the head, by hand: logits y have gradients 2 y; of a bias, the sum over its tokens."""
    model = helpers.model(CLASSIFIER)
    batch = BATCH | {"scale": np.ones(4, np.float32)}
    found = compression.calibrate(model, [batch], loss=squared_logits)
    logits = np.asarray(model(jnp.asarray(IDS), jnp.asarray(MASK)), np.float64)
    head = found.statistics["head"]
    assert head.count == 4
    assert head.gradient == pytest.approx(np.mean(np.sum((2 * logits) ** 2, axis=1)), rel=1e-4)
    assert found.has_gradients
    # One real token, of the only example with a loss: gradients at outputs are those of biases.
    one = {"attention_mask": np.zeros_like(MASK), "scale": np.eye(4, dtype=np.float32)[0]}
    one["attention_mask"][0, 0] = 1
    found = compression.calibrate(model, [BATCH | one], loss=squared_logits)
    arrays = {name: jnp.asarray(value) for name, value in (BATCH | one).items()}
    gradients = nnx.state(
        jax.jit(jax.grad(lambda m: 4 * squared_logits(m, arrays, None)[0]))(model)
    )
    flat = {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(gradients)}
    for part, name in (("feed_forward", "up"), ("feed_forward", "down"), ("attention", "value")):
        for layer in (0, 1):
            square = np.sum(np.square(flat[f"encoder/stacks/0/{part}/{name}/bias"][layer]))
            entry = found.statistics[f"layers/{layer}/{part}/{name}"]
            assert entry.gradient == pytest.approx(float(square), rel=1e-3)


ARCHITECTURES = {
    "shared layers": {"layer_groups": 1, "num_layers": 3, "embedding_size": 6},
    "remat": {"remat": True},
    "no token types": {"token_types": 0},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures(name):
    settings = dataclasses.replace(helpers.SETTINGS, **ARCHITECTURES[name])
    model = helpers.model(settings)
    found = compression.calibrate(model, [BATCH])
    assert set(found.statistics) == set(settings.matrix_sizes())
    times = 3 if name == "shared layers" else 1
    assert found.statistics["layers/0/feed_forward/down"].count == 16 * times
    if name == "shared layers":
        assert found.statistics["embeddings/projection"].covariance.shape == (6, 6)


def test_matrices_in_mpo_form_are_left_out(dense):
    model, _ = compression.compress(dense, [(".*/query", {"bond": 3})])
    found = compression.calibrate(model, [BATCH])
    assert "layers/0/attention/query" not in found.statistics
    assert "layers/0/attention/key" in found.statistics


def _weighted(x, weights):
    """(mean over the inputs of x^T x, how many) in float64."""
    rows = np.asarray(x, np.float64)[weights]
    return rows.T @ rows / len(rows), len(rows)


relative_buckets = jax.jit(positions.relative_buckets, static_argnums=(1, 2, 3))


class NaiveT5:
    """T5 (v1.0) by the book in float64; `inputs` holds what enters each matrix."""

    def __init__(self, arrays, config):
        self.arrays = {name: np.asarray(a, np.float64) for name, a in arrays.items()}
        self.config, self.inputs = config, {}

    def map(self, path, x):
        self.inputs[path] = x
        return x @ self.arrays[f"{path}/kernel"]

    def norm(self, path, x):
        mean_square = np.mean(x**2, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.config.norm_eps) * self.arrays[f"{path}/scale"]

    def attention(self, path, x, encoded, mask, bias):
        heads = (*x.shape[:1], -1, self.config.num_heads, self.config.head_size)
        q, k, v = (
            self.map(f"{path}/{name}", y).reshape(heads)
            for name, y in (("query", x), ("key", encoded), ("value", encoded))
        )
        scores = np.where(mask, np.einsum("bqhd,bkhd->bhqk", q, k) + bias, -1e30)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, v)
        return self.map(f"{path}/out", mixed.reshape(*x.shape[:2], -1))

    def bias(self, stack, length):
        places = np.arange(length)
        numbers = relative_buckets(
            places[None] - places[:, None],
            *(self.config.relative_buckets, self.config.relative_distance, stack == "encoder"),
        )
        return np.moveaxis(self.arrays[f"{stack}/relative_bias/table"][np.asarray(numbers)], 2, 0)

    def run(self, stack, depth, ids, mask, encoded=None, encoded_mask=None):
        x, bias = self.arrays["embeddings/word/table"][ids], self.bias(stack, ids.shape[1])
        for layer in (f"{stack}/layers/{i}" for i in range(depth)):
            normed = self.norm(f"{layer}/attention_norm", x)
            x = x + self.attention(f"{layer}/attention", normed, normed, mask, bias)
            if encoded is not None:
                normed = self.norm(f"{layer}/cross_attention_norm", x)
                x = x + self.attention(
                    f"{layer}/cross_attention", normed, encoded, encoded_mask, 0.0
                )
            inner = self.map(f"{layer}/feed_forward/up", self.norm(f"{layer}/feed_forward_norm", x))
            x = x + self.map(f"{layer}/feed_forward/down", np.maximum(inner, 0.0))
        return self.norm(f"{stack}/final_norm", x)


@pytest.mark.parametrize("length", [5, 7], ids=["shorter targets", "targets as long as sources"])
def test_encoder_decoders_against_a_naive_reference(length):
    """Encoder, decoder, and cross-attention, whose keys and values read the encoder's output."""
    config = dataclasses.replace(language_helpers.T5, dropout=0.0)
    arrays = {n: 0.3 * a for n, a in language_helpers.arrays(config).items()}
    model = models.from_arrays(config, {}, arrays)
    targets = np.random.default_rng(1).integers(0, 40, (4, length))
    real = (np.arange(length) < np.array([[2], [5], [1], [4]])).astype(np.int32)
    batch = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": targets}
    found = compression.calibrate(model, [batch | {"decoder_attention_mask": real}])
    naive = NaiveT5(arrays, config)
    mask = MASK[:, None, None, :] > 0
    encoded = naive.run("encoder", 2, IDS, mask)
    causal = np.tril(np.ones((length, length), bool)) & (real[:, None, None, :] > 0)
    naive.run("decoder", 3, targets, causal, encoded, mask)
    assert {*naive.inputs, "embeddings/word"} == set(found.statistics)
    for path, x in naive.inputs.items():
        of_source = path.startswith("encoder") or path.endswith(
            ("cross_attention/key", "cross_attention/value")
        )
        expected, count = _weighted(x, (MASK if of_source else real) > 0)
        assert found.statistics[path].count == count
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found.covariance(path), expected, rtol=1e-4, atol=1e-5 * scale)
    words = np.bincount(np.append(IDS[MASK > 0], targets[real > 0]), minlength=40)
    np.testing.assert_allclose(found.covariance("embeddings/word"), words / words.sum(), atol=1e-7)
    # As training batches have it: weights of targets, all of whose inputs are seen.
    by_weights = compression.calibrate(model, [batch | {"target_weights": real.astype(np.float32)}])
    path = "decoder/layers/0/attention/query"
    assert by_weights.statistics[path].count == real.sum()
    np.testing.assert_allclose(by_weights.covariance(path), found.covariance(path), rtol=1e-5)


def test_gradients_of_an_encoder_decoder():
    """The loss of language models; a longer source that is padding changes nothing."""
    config = dataclasses.replace(language_helpers.T5, dropout=0.0)
    model = models.from_arrays(config, {}, language_helpers.arrays(config))
    batch = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": IDS, "targets": IDS}
    batch["target_weights"] = MASK.astype(np.float32)
    longer = {
        name: np.pad(batch[name], ((0, 0), (0, 2))) for name in ("input_ids", "attention_mask")
    }
    loss = training.language_model_loss()
    one, other = (compression.calibrate(model, [b], loss=loss) for b in (batch, batch | longer))
    assert one.num_examples == other.num_examples == 4
    for path, entry in one.statistics.items():
        assert entry.gradient > 0
        assert entry.gradient == pytest.approx(other.statistics[path].gradient, rel=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_decoders(name):
    """With and without a mask; token types, which they do not know, are not read."""
    config = language_helpers.CONFIGS[name]
    model = models.from_arrays(config, {}, language_helpers.arrays(config))
    types = {"token_type_ids": np.ones_like(IDS)}
    found = compression.calibrate(model, [BATCH | types])
    assert set(found.statistics) == set(config.matrix_sizes())
    assert found.statistics["layers/0/attention/query"].count == 16
    plain = compression.calibrate(model, [{"input_ids": IDS} | types])
    full = compression.calibrate(model, [{"input_ids": IDS, "attention_mask": np.ones_like(IDS)}])
    for path, entry in full.statistics.items():
        assert plain.statistics[path].count == entry.count > 0
        np.testing.assert_allclose(
            plain.covariance(path), entry.covariance, rtol=1e-4, atol=1e-5 * entry.covariance.max()
        )
    if name == "gpt2":
        expected = np.append(np.full(7, 1 / 7), np.zeros(9))
        np.testing.assert_allclose(plain.covariance("embeddings/position"), expected, atol=1e-7)


def test_batches_of_an_encoder_decoder_need_both_kinds_of_ids():
    model = models.from_arrays(
        language_helpers.T5, {}, language_helpers.arrays(language_helpers.T5)
    )
    with pytest.raises(ValueError, match="batch 1 has no 'decoder_input_ids'"):
        compression.calibrate(model, [BATCH])
    with pytest.raises(
        ValueError, match=r"has decoder_input_ids \(4, 7\) and a mask .* with 0 real"
    ):
        compression.calibrate(
            model, [BATCH | {"decoder_input_ids": IDS, "target_weights": np.zeros(IDS.shape)}]
        )


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "needs at least one batch"),
        ([{"ids": IDS}], r"batch 1 has no 'input_ids', only \['ids'\]"),
        ([BATCH, {"input_ids": IDS[0]}], r"batch 2 has input_ids \(7,\)"),
        ([{"input_ids": IDS, "attention_mask": MASK * 0}], "with 0 real tokens"),
        ([{"input_ids": IDS, "attention_mask": MASK[:2]}], r"a mask \(2, 7\)"),
        ([{"input_ids": IDS + 40}], "batch 1 has token ids in .* this tokenizer does not fit"),
    ],
)
def test_bad_batches_are_refused(dense, batches, message):
    with pytest.raises(ValueError, match=message):
        compression.calibrate(dense, batches)


def test_the_first_layer_whose_inputs_are_not_finite_is_named(dense):
    for name, place in (
        ("layers/0/attention/out/kernel", "the inputs of layers/0/feed_forward/up are NaN"),
        ("layers/1/feed_forward/down/kernel", "the model's output or its loss is NaN"),
    ):
        arrays = dict(models.to_arrays(dense))
        arrays[name] = np.full_like(arrays[name], np.nan)
        broken = models.from_arrays(dense.config, {}, arrays)
        with pytest.raises(ValueError, match=f"batch 1: .*{place}"):
            compression.calibrate(broken, [BATCH], curvature=True)


def test_another_model_is_refused(dense, calibration):
    calibration.check({"pooler": models.to_arrays(dense)["pooler/kernel"]})
    with pytest.raises(ValueError, match="is of another model: the weights of pooler were others"):
        calibration.check({"pooler": np.ones((12, 12), np.float32)})
    with pytest.raises(ValueError, match=r"for pooler \(9 inputs\) it holds 12 inputs"):
        calibration.check({"pooler": np.ones((9, 12), np.float32)})
    with pytest.raises(ValueError, match=r"for head \(12 inputs\) it holds nothing"):
        calibration.check({"head": np.ones((12, 3), np.float32)})


def test_too_few_inputs_need_a_ridge(calibration):
    path = "layers/0/feed_forward/down"
    assert calibration.metric(path, ridge=1e-3).matrix.shape == (24, 24)
    with pytest.raises(ValueError, match=r"down: 16 calibration inputs are too few .* 24 features"):
        calibration.metric(path)
    with pytest.raises(ValueError, match=r"down, calibrated with 16 inputs: .* singular: .* ridge"):
        calibration.metric(path, ridge=0.0)
    with pytest.raises(ValueError, match="pooler: no input has entered this matrix"):
        calibration.metric("pooler")
    words = calibration.metric("embeddings/word").matrix
    assert words.min() == pytest.approx(1.0)  # unseen rows count as much as the mean one


def test_curvature_is_that_of_the_gradients_at_drawn_targets():
    config = dataclasses.replace(small_language.LLAMA, tied=False)
    model = models.build(config, rngs=nnx.Rngs(3))
    calibration = compression.calibrate(model, [BATCH], curvature=True)
    logits = np.asarray(model(IDS, MASK), np.float64)
    keys = jax.random.split(jax.random.key(np.uint32(1)), len(IDS))  # a row has its own
    targets = jax.vmap(jax.random.categorical)(keys, jnp.asarray(logits, jnp.float32))
    # d(logsumexp - logit of the target) / d logits = p - onehot, at the real tokens
    g = np.exp(logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True)))
    g -= np.eye(config.vocab_size)[np.asarray(targets)]
    g = g[MASK > 0]
    found = calibration.statistics["head"]
    np.testing.assert_allclose(found.curvature, g.T @ g / len(g), rtol=1e-3, atol=1e-6)
    for entry in calibration.statistics.values():
        if entry.curvature is not None:  # not of the table
            assert np.trace(entry.curvature) == pytest.approx(entry.gradient, rel=1e-4)


def test_curvature_of_a_model_without_predictions():
    linear = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)

    class Module(nnx.Module):
        def __init__(self):
            self.linear = linear

        def __call__(self, x):
            return self.linear(x)

    found = compression.calibrate(Module(), [x], curvature=True).statistics["linear"]
    noise = np.asarray(jax.random.normal(jax.random.key(np.uint32(1)), (5, 4)))
    np.testing.assert_allclose(found.curvature, noise.T @ noise / 5, rtol=1e-5)
