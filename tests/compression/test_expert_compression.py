"""Mixtures that exist: their experts compressed, each by the tokens that reach it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mpojax as mj
from mpojax import compression, io, models, mpo
from mpojax import nn as mpo_nn
from mpojax.compression import experts as experts_lib
from tests.io import expert_helpers
from tests.models import small_language

CONFIG = dataclasses.replace(small_language.LLAMA, num_layers=2)
IDS = np.random.default_rng(0).integers(1, 20, (12, 12))
MASK = np.ones((6, 12), int)
MASK[0, 5:] = 0
BATCHES = [{"input_ids": IDS[:6], "attention_mask": MASK}, {"input_ids": IDS[6:]}]
BLOCK = "layers/1/feed_forward"


@pytest.fixture(scope="module")
def model():
    """Like Mixtral, of which the last expert of the last layer gets no token."""
    dense = models.build(CONFIG, rngs=nnx.Rngs(0))
    rule = mj.Rule(".*feed_forward", number=4, form="switch", router="topk_normalized", k=2)
    mixture = expert_helpers.shaken(mj.add_experts(dense, [rule], rngs=nnx.Rngs(1)))
    arrays = models.to_arrays(mixture)
    arrays[f"{BLOCK}/router/bias"] = np.float32([0, 0, 0, -100])
    return models.from_arrays(mixture.config, {}, arrays)


@pytest.fixture(scope="module")
def calibration(model):
    return mj.calibrate(model, BATCHES)


@pytest.fixture(scope="module")
def compressed(model, calibration):
    return mj.compress(model, budget=0.6, calibration=calibration, method="experts")


def test_statistics_are_those_of_the_tokens_of_each_expert(model, calibration):
    sums, counts = {"up": 0.0, "down": 0.0}, np.zeros(4)
    arrays = {n: np.float64(a) for n, a in models.to_arrays(model).items()}

    @jax.jit
    def entering(ids, mask):
        """What the experts of layer 0 read."""
        layer = model.tower.layer(0)
        x, context = model.begin(ids, mask)
        context = context.of_layer(0)
        y = layer.normed("attention", x)
        y = layer.attention(
            y,
            context.mask,
            keys_values=layer.attention.keys_values(y, context.rotary),
            rotary=context.rotary,
        )
        return layer.normed("feed_forward", x + y)

    seen = []
    for batch in BATCHES:
        mask = batch.get("attention_mask")
        rows = np.float64(entering(batch["input_ids"], mask)).reshape(-1, 16)
        seen.append(rows[np.ones(len(rows), bool) if mask is None else mask.ravel() > 0])
    start = "layers/0/feed_forward"
    for row in np.concatenate(seen):
        logits = row @ arrays[f"{start}/router/kernel"] + arrays[f"{start}/router/bias"]
        for e in np.argsort(-logits)[:2]:
            up, gate = (row @ arrays[f"{start}/{n}/kernel"][e] for n in ("up", "gate"))
            inner = gate / (1 + np.exp(-gate)) * up
            counts[e] += 1
            for name, entering in (("up", row), ("down", inner)):
                moments = np.zeros((4, len(entering), len(entering)))
                moments[e] = np.outer(entering, entering)
                sums[name] = sums[name] + moments
    total = sum(map(len, seen))
    for name, expected in sums.items():
        found = calibration.statistics[f"{start}/{name}"]
        np.testing.assert_allclose(found.covariance, expected / total, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found.loads, counts / total)


def test_the_best_form_of_every_map(model, calibration, compressed, tmp_path):
    small, report = compressed
    assert report.parameters <= 0.6 * report.dense_parameters
    assert sum(models.count_parameters(small).values()) == report.parameters
    rows = {row.path: row for row in report.rows}
    assert len(rows) == 14
    experts = [
        row
        for row in report.rows
        if row.path in calibration.statistics and row.method in mpo.EXPERT_FORMS
    ]
    assert len(experts) == 6
    assert all(row.output_error <= row.baseline_output_error * 1.01 for row in experts)
    assert any("loses less than every baseline" in note for note in report.notes)
    assert f"{BLOCK}: no token of the calibration reached experts 3" in report.notes[-1]
    assert "best baseline" in report.table()
    assert report.notes[0] in report.to_markdown()
    ids = jnp.asarray(IDS)
    assert np.isfinite(small(ids)).all()
    mj.save(small, tmp_path / "small")
    np.testing.assert_array_equal(mj.load(tmp_path / "small")(ids), small(ids))
    dense = mj.merge(small)
    assert not dense.shapes
    assert dense.config.experts_of(BLOCK) == model.config.experts_of(BLOCK).merged()
    np.testing.assert_allclose(dense(ids), small(ids), atol=1e-4)
    np.testing.assert_allclose(jax.jit(models.merged)(small)(ids), small(ids), atol=1e-4)


def test_methods_with_an_svd_for_each_expert(model, calibration, compressed):
    ranks = {}
    for method in ("svd", "whitened"):
        small, report = mj.compress(model, budget=0.6, calibration=calibration, method=method)
        assert not small.config.experts_of(BLOCK).share_central
        ranks[method] = [row.output_error for row in report.rows if "feed_forward" in row.path]
    ours = [row.output_error for row in compressed[1].rows if "feed_forward" in row.path]
    assert np.all(np.array(ours) <= np.array(ranks["whitened"]) * 1.01)
    assert np.mean(ranks["whitened"]) < np.mean(ranks["svd"])


def test_a_mixture_in_files_and_rules_for_experts_alone(tmp_path):
    dense = models.build(CONFIG, rngs=nnx.Rngs(0))
    fields = {"number": 4, "form": "switch", "router": "topk_normalized", "router_bias": False}
    mixture = mj.add_experts(dense, [mj.Rule(".*feed_forward", **fields)], rngs=nnx.Rngs(1))
    io.export_huggingface(mj.merge(mixture), tmp_path / "mixture")  # as a Mixtral
    stored = io.open_pretrained(tmp_path / "mixture")
    small, report = mj.compress(
        stored, [mj.Rule(".*/feed_forward/down")], budget=0.9, calibration=IDS
    )
    assert set(small.shapes) == {f"layers/{n}/feed_forward/down" for n in (0, 1)}
    settings = small.config.experts_of(BLOCK)
    assert set(settings.shared_base) <= {"down"}
    assert f"{BLOCK}/up" in report.unmatched


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0.2}, "smallest feasible budget"),
        ({"method": "nearest"}, "method='nearest' must be one of"),
    ],
)
def test_what_cannot_be_done(model, calibration, arguments, message):
    given = {"budget": 0.6, "calibration": calibration, "method": "experts", **arguments}
    with pytest.raises(ValueError, match=message):
        mj.compress(model, **given)


def test_a_method_that_knows_no_experts_is_told_before_anything_is_calibrated(model):
    for run in (mj.compress, compression.check_rules):
        given = {"calibration": [{"input_ids": "no ids"}]} if run is mj.compress else {}
        with pytest.raises(ValueError, match="method='pivoted' knows no experts"):
            run(model, budget=0.6, method="pivoted", **given)


def test_notes_of_experts_that_read_nothing():
    row = compression.MatrixRow.of(
        *(f"{BLOCK}/down", mpo.MPOShape.low_rank(4, 4, 1)),
        relative_error=0.5,
        error_bound=None,
        entropy=(),
        svd_error=None,
        method="shared_first",
        output_error=0.0,
        baseline_output_error=0.0,
    )
    assert experts_lib.Compressed({}, {}, [row]).notes == ()


def test_rules_and_settings_that_experts_cannot_have(model):
    t5 = models.build(small_language.T5, rngs=nnx.Rngs(0))
    t5 = mj.add_experts(t5, [mj.Rule(".*feed_forward", number=2)], rngs=nnx.Rngs(0))
    t5 = mj.merge(t5)  # experts with a matrix each
    compression.check_rules(t5, budget=0.97, method="pivoted")  # experts are left alone
    rules = [mj.Rule(".*/feed_forward/up")]
    with pytest.raises(ValueError, match="map of experts, which methods compress"):
        compression.check_rules(t5, rules, budget=0.9, method="pivoted")
    with pytest.raises(ValueError, match="map of experts, which methods compress"):
        mj.compress(model, [mj.Rule(".*/feed_forward/up", rank=2)])
    settings = mpo_nn.ExpertSettings(4, shared_base=("up",))
    with pytest.raises(ValueError, match="shared_base names 'up', which has no shape"):
        mpo_nn.ExpertFeedForward(8, 8, "relu", {}, settings, rngs=nnx.Rngs(0))
    assert compression.METHODS["experts"].forms == mpo.EXPERT_FORMS
