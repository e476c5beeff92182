"""Methods of low rank for whole models: sizes, order of their errors, what they refuse."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mpojax as mj
from mpojax import compression, models, mpo
from tests.models import small, small_language

CONFIG = dataclasses.replace(small_language.LLAMA, num_layers=2)
IDS = np.random.default_rng(0).integers(1, 20, (12, 12))
BATCHES = [{"input_ids": IDS[:6]}, {"input_ids": IDS[6:]}]


@pytest.fixture(scope="module")
def model():
    return models.build(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def calibration(model):
    return mj.calibrate(model, BATCHES, curvature=True)


@pytest.mark.parametrize("method", compression.METHODS)
def test_every_method_keeps_to_its_budget(model, calibration, method):
    given = BATCHES if compression.METHODS[method].layerwise else calibration
    small_model, report = mj.compress(model, budget=0.7, calibration=given, method=method)
    total = sum(models.count_parameters(small_model).values())
    assert total == report.parameters <= 0.7 * report.dense_parameters
    assert report.rows[0].method == compression.METHODS[method].label
    assert small_model(jnp.asarray(IDS)).shape == (12, 12, CONFIG.vocab_size)
    pivoted = any(shape.pivoted for shape in small_model.shapes.values())
    assert pivoted == compression.METHODS[method].pivoted
    assert report.rows[0].method in report.to_markdown()
    assert "SVD error" not in report.table()


def errors(model, calibration, method):
    """Summed squared output errors, and errors by inputs and outputs, at one size."""
    compressed, _ = mj.compress(model, budget=0.7, calibration=calibration, method=method)
    merged, dense = (models.to_arrays(m) for m in (mj.merge(compressed), model))
    outputs = curved = 0.0
    for path, entry in calibration.statistics.items():
        if path.startswith("layers/"):
            error = np.float64(merged[f"{path}/kernel"]) - dense[f"{path}/kernel"]
            square = error.T @ entry.covariance @ error
            outputs += np.trace(square)
            curved += np.trace(mpo.ridged(entry.curvature, 0.1) @ square)
    return outputs, curved


def test_each_method_is_best_by_its_own_measure(model, calibration):
    found = {
        name: errors(model, calibration, name)
        for name in ("svd", "activation_scaled", "whitened", "two_sided", "pivoted")
    }
    assert found["whitened"][0] <= min(found["svd"][0], found["activation_scaled"][0]) * 1.001
    assert found["two_sided"][1] <= min(found[n][1] for n in ("svd", "whitened")) * 1.001
    assert found["pivoted"][1] < found["two_sided"][1]


def test_ranks_that_a_role_shares_leave_one_stack(model, calibration):
    given = {"budget": 0.7, "calibration": calibration, "method": "pivoted"}
    shared, of_roles = mj.compress(model, share_bonds=True, **given)
    _, alone = mj.compress(model, **given)
    assert len(shared.tower.stacks) == 1
    assert of_roles.parameters <= 0.7 * of_roles.dense_parameters
    losses = [sum(row.predicted_loss for row in report.rows) for report in (alone, of_roles)]
    assert losses[0] <= losses[1] * 1.05


def test_more_parameters_are_never_predicted_worse(model, calibration):
    losses = []
    for budget in (0.6, 0.7, 0.8, 0.9):
        _, report = mj.compress(model, budget=budget, calibration=calibration, method="pivoted")
        losses.append(sum(row.predicted_loss for row in report.rows))
    assert losses == sorted(losses, reverse=True)


def test_the_best_is_the_default_of_texts(model):
    by_array, report = mj.compress(model, budget=0.7, calibration=IDS)
    by_batches, _ = mj.compress(model, budget=0.7, calibration=[{"input_ids": IDS}], method="best")
    assert report.rows[0].method == "ours"
    ids = jnp.asarray(IDS)
    np.testing.assert_allclose(by_array(ids), by_batches(ids), atol=1e-4)


def test_models_without_a_single_stack_and_modules_of_ones_own():
    pair = models.build(small_language.T5, rngs=nnx.Rngs(0))
    batch = {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
    _, report = mj.compress(pair, budget=0.7, calibration=[batch])
    assert report.rows[0].method == "two-sided, pivoted"

    class MLP(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(8, 32, rngs=rngs)
            self.down = nnx.Linear(32, 4, rngs=rngs)

        def __call__(self, x):
            return self.down(nnx.relu(self.up(x)))

    x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    made, report = mj.compress(MLP(nnx.Rngs(0)), budget=0.7, calibration=[x])
    assert report.parameters <= 0.7 * report.dense_parameters
    assert made(x).shape == (64, 4)


def test_encoders_and_rules_that_are_patterns():
    encoder = models.build(small.BERT, rngs=nnx.Rngs(0))
    ids = IDS[:, : small.BERT.max_positions]
    made, report = mj.compress(
        encoder, [mj.Rule(".*/feed_forward/.*")], budget=0.8, calibration=ids
    )
    assert all("feed_forward" in path for path in made.shapes)
    assert "layers/0/attention/query" in report.unmatched


def test_few_tokens_still_work_and_say_so(model, caplog):
    made, _ = mj.compress(model, budget=0.7, calibration=IDS[:1, :2])
    assert "2 tokens are fewer than the 16 inputs of layers/0/attention/query" in caplog.text
    assert np.isfinite(np.asarray(made(jnp.asarray(IDS)))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic", "budget": 0.5, "calibration": IDS}, "method='magic'"),
        ({"calibration": IDS}, "needs a budget"),
        ({"method": "best", "budget": 0.5}, "needs a budget and a calibration"),
        ({"budget": 0.01, "calibration": IDS}, "smallest feasible budget"),
        ({"budget": 0.7, "calibration": IDS[0]}, r"token ids\s+\(N, length\)"),
        (
            {"budget": 0.7, "calibration": IDS, "rules": [mj.Rule("layers", bond=3)]},
            "a method chooses the form",
        ),
        (
            {"budget": 0.7, "calibration": IDS, "rules": [mj.Rule("all")]},
            "embeddings/word: a method is for the linear maps",
        ),
    ],
)
def test_bad_arguments(model, options, message):
    with pytest.raises(ValueError, match=message):
        mj.compress(model, **options)


def test_a_calibration_that_lacks_something(model, calibration):
    plain = mj.calibrate(model, BATCHES)
    with pytest.raises(ValueError, match="calibrate with curvature=True"):
        mj.compress(model, budget=0.7, calibration=plain, method="pivoted")
    with pytest.raises(ValueError, match="give the batches as calibration"):
        mj.compress(model, budget=0.7, calibration=calibration, method="best")
    compressed, _ = mj.compress(model, budget=0.7, calibration=plain, method="svd")
    with pytest.raises(ValueError, match="in MPO form already"):
        mj.compress(compressed, budget=0.6, calibration=IDS)
