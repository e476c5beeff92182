"""Calibration: covariances against captured inputs, padding, gradients, every architecture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import interop, models
from tests.interop import helpers

IDS = np.random.default_rng(0).integers(0, 40, (4, 7))
MASK = (np.arange(7) < np.array([[7], [3], [5], [1]])).astype(np.int32)
BATCH = {"input_ids": IDS, "attention_mask": MASK}


@pytest.fixture(scope="module")
def dense():
    return helpers.model()


@pytest.fixture(scope="module")
def calibration(dense):
    return interop.calibrate(dense, [BATCH])


def layer_inputs(model):
    """What enters each linear map of layer 0, by calling its parts one by one."""
    layer = jax.tree.map(lambda parameter: parameter[0], model.stacks[0])
    x = model.embeddings(jnp.asarray(IDS), None, None)
    attention, block = layer.attention, layer.feed_forward
    mixed = []
    real, attention.out = attention.out, lambda y: mixed.append(y) or real(y)
    attended = attention(x, jnp.asarray(MASK, bool))
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
    other = interop.calibrate(dense, halves)
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
    found = interop.calibrate(model, [batch], loss=squared_logits)
    logits = np.asarray(model(jnp.asarray(IDS), jnp.asarray(MASK)), np.float64)
    head = found.statistics["head"]
    assert head.count == 4
    assert head.gradient == pytest.approx(np.mean(np.sum((2 * logits) ** 2, axis=1)), rel=1e-4)
    assert found.has_gradients
    # One real token, of the only example with a loss: gradients at outputs are those of biases.
    one = {"attention_mask": np.zeros_like(MASK), "scale": np.eye(4, dtype=np.float32)[0]}
    one["attention_mask"][0, 0] = 1
    found = interop.calibrate(model, [BATCH | one], loss=squared_logits)
    arrays = {name: jnp.asarray(value) for name, value in (BATCH | one).items()}
    gradients = nnx.grad(lambda m: 4 * squared_logits(m, arrays, None)[0])(model)
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
    found = interop.calibrate(model, [BATCH])
    assert set(found.statistics) == set(models.matrix_sizes(settings))
    times = 3 if name == "shared layers" else 1
    assert found.statistics["layers/0/feed_forward/down"].count == 16 * times
    if name == "shared layers":
        assert found.statistics["embeddings/projection"].covariance.shape == (6, 6)


def test_matrices_in_mpo_form_are_left_out(dense):
    model, _ = interop.compress(dense, [(".*/query", {"bond": 3})])
    found = interop.calibrate(model, [BATCH])
    assert "layers/0/attention/query" not in found.statistics
    assert "layers/0/attention/key" in found.statistics


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "needs at least one batch"),
        ([{"ids": IDS}], r"batch 1 has no 'input_ids', only \['ids'\]"),
        ([BATCH, {"input_ids": IDS[0]}], r"batch 2 has input_ids \(7,\)"),
        ([{"input_ids": IDS, "attention_mask": MASK * 0}], "with 0 real tokens"),
        ([{"input_ids": IDS, "attention_mask": MASK[:2]}], r"a mask \(2, 7\)"),
        ([{"input_ids": IDS + 40}], "batch 1 gives activations .* not finite"),
    ],
)
def test_bad_batches_are_refused(dense, batches, message):
    with pytest.raises(ValueError, match=message):
        interop.calibrate(dense, batches)


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
    assert calibration.metric(path, ridge=1e-3).shape == (24, 24)
    with pytest.raises(ValueError, match=r"down: 16 calibration inputs are too few .* 24 features"):
        calibration.metric(path)
    with pytest.raises(ValueError, match=r"down, calibrated with 16 inputs: .* singular: .* ridge"):
        calibration.metric(path, ridge=0.0)
    with pytest.raises(ValueError, match="pooler: no input has entered this matrix"):
        calibration.metric("pooler")
    words = calibration.metric("embeddings/word")
    assert words.min() == pytest.approx(1.0)  # unseen rows count as much as the mean one
