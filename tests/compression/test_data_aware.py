"""compress with a calibration: data-aware fits, search, first-order allocation, reports."""

import csv
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import compression, models, mpo
from tests.io import helpers

LINEAR = ".*/(query|key|value|out|up|down)"
RNG = np.random.default_rng(0)
BATCH = {"input_ids": RNG.integers(0, 40, (8, 10)), "scale": np.ones(8, np.float32)}
SETTINGS = dataclasses.replace(helpers.SETTINGS, num_labels=2, pooling="mean", dropout=0.0)


def loss(model, batch, key):
    logits = model(batch["input_ids"], None, None, key)
    return jnp.mean(batch["scale"] * jnp.sum(logits**2, axis=-1))


@pytest.fixture(scope="module")
def dense():
    return helpers.model(SETTINGS)


@pytest.fixture(scope="module")
def calibration(dense):
    return compression.calibrate(dense, [BATCH], loss=loss)


def compressed(dense, calibration, settings, **options):
    rules = [(LINEAR, settings), ("embeddings/word", settings)]
    return compression.compress(dense, rules, calibration=calibration, **options)


@pytest.mark.parametrize(
    "settings", [{"form": "low_rank"}, {"cores": 3}, {"search": True}], ids=str
)
@pytest.mark.parametrize("share_bonds", [True, False])
def test_outputs_are_nearer_than_those_of_plain_chains(dense, calibration, settings, share_bonds):
    options = {"budget": 0.6, "share_bonds": share_bonds, "keep_dense": False}
    _, plain = compressed(dense, calibration, settings, **options)
    model, aware = compressed(dense, calibration, settings | {"data_aware": True}, **options)
    assert max(plain.parameters, aware.parameters) <= 0.6 * plain.dense_parameters
    assert aware.output_error < plain.output_error
    assert plain.relative_error < aware.relative_error
    merged, before = models.to_arrays(compression.merge(model)), models.to_arrays(dense)
    for row in aware.rows:
        covariance = calibration.covariance(row.path)
        name = models.dense_name(row.path)
        error = mpo.weighted_relative_error(before[name], merged[name], covariance)
        assert row.output_error == pytest.approx(error, rel=1e-4)
        if "search" in settings:
            best = min(row.svd_output_error, row.data_svd_output_error)
            assert row.output_error <= best * (1 + 1e-5)  # stored in float32
            assert row.method == "searched, data-aware"
    if share_bonds:
        assert len(model.encoder.stacks) == 1


def test_plain_rows_carry_the_svd_of_equal_size(dense):
    _, report = compression.compress(dense, [(LINEAR, {"bond": 3, "cores": 3})])
    arrays = models.to_arrays(dense)
    for row in report.rows:
        w = arrays[f"{row.path}/kernel"].astype(np.float64)
        rank = row.mpo_parameters // sum(w.shape)
        singular = np.linalg.svd(w, compute_uv=False)
        tail = np.linalg.norm(singular[rank:]) / np.linalg.norm(singular)
        assert row.svd_error == pytest.approx(tail, rel=1e-6)
        assert (row.output_error, row.method) == (None, "plain")
    assert report.output_error is None


def test_a_calibration_alone_measures_and_changes_nothing(dense, calibration):
    one, plain = compressed(dense, None, {"bond": 4})
    two, measured = compressed(dense, calibration, {"bond": 4})
    for name, array in models.to_arrays(one).items():
        np.testing.assert_array_equal(models.to_arrays(two)[name], array)
    for a, b in zip(plain.rows, measured.rows, strict=True):
        assert (a.relative_error, a.bonds) == (b.relative_error, b.bonds)
        assert None not in (b.output_error, b.svd_output_error, b.data_svd_output_error)
        assert b.data_svd_output_error <= b.svd_output_error * (1 + 1e-3)


def test_full_bonds_stay_exact(dense, calibration):
    _, report = compressed(dense, calibration, {"data_aware": True, "cores": 3})
    assert max(row.relative_error for row in report.rows) < 2e-6
    assert max(row.output_error for row in report.rows) < 1e-5


@pytest.mark.parametrize("gauge", ["left", "symmetric"])
def test_gauges_hold_the_same_data_aware_matrix(dense, calibration, gauge):
    settings = {"data_aware": True, "bond": 3, "cores": 3}
    one, _ = compressed(dense, calibration, settings)
    two, _ = compressed(dense, calibration, settings | {"gauge": gauge})
    a, b = (models.to_arrays(compression.merge(model)) for model in (one, two))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-4)


def test_a_search_takes_its_size_from_a_rank(dense, calibration):
    rules = [(".*/(up|down)", {"search": True, "rank": 4})]
    _, report = compression.compress(dense, rules, calibration=calibration)
    assert all(row.mpo_parameters <= 4 * 36 for row in report.rows)
    assert all(row.relative_error <= row.svd_error * (1 + 1e-5) for row in report.rows)
    assert {row.method for row in report.rows} == {"searched"}


def test_first_order_allocation_spares_what_the_loss_sees(dense):
    """What the loss presses on most gets at least as much as before, what it ignores gets less."""
    calibration = compression.calibrate(dense, [BATCH], loss=loss)
    options = {"budget": 0.7, "share_bonds": False, "keep_dense": False}
    settings = {"form": "low_rank"}
    _, by_error = compressed(dense, calibration, settings, **options)
    _, by_loss = compressed(dense, calibration, settings, allocation="first_order", **options)
    arrays = models.to_arrays(dense)
    pressures = {
        row.path: calibration.sensitivity(row.path, arrays[models.dense_name(row.path)], False)
        / np.sqrt(row.dense_parameters)
        for row in by_error.rows
    }
    ranks = [{row.path: row.bonds[0] for row in report.rows} for report in (by_error, by_loss)]
    most, least = max(pressures, key=pressures.get), min(pressures, key=pressures.get)
    assert pressures[most] > 2 * pressures[least]
    assert ranks[1][most] >= ranks[0][most]
    assert ranks[1][least] < ranks[0][least]


def test_sensitivities_scale_as_squares(dense, calibration):
    path = "layers/0/feed_forward/up"
    w = models.to_arrays(dense)[f"{path}/kernel"].astype(np.float64)
    entry = calibration.statistics[path]
    for aware in (True, False):
        one, two = (calibration.sensitivity(path, factor * w, aware) for factor in (1, 2))
        assert two == pytest.approx(4 * one)
    expected = entry.count * entry.gradient * np.trace(w.T @ entry.covariance @ w) / 24
    assert calibration.sensitivity(path, w, True) == pytest.approx(expected)


def test_kept_matrices_are_reported_and_cost_their_numbers(dense):
    rules = [(LINEAR, {}), ("embeddings/word", {})]
    model, report = compression.compress(dense, rules, budget=0.97)
    _, forced = compression.compress(dense, rules, budget=0.97, keep_dense=False)
    assert report.kept_dense
    assert not forced.kept_dense
    assert set(report.kept_dense).isdisjoint(model.shapes)
    assert {row.path for row in report.rows} | set(report.kept_dense) == {
        row.path for row in forced.rows
    }
    assert all(row.mpo_parameters < row.dense_parameters for row in report.rows)
    assert any(row.mpo_parameters > row.dense_parameters for row in forced.rows)
    assert report.parameters == sum(models.count_parameters(model).values())
    for text in (report.table(), report.to_markdown()):
        assert "kept dense, as a chain of the bonds they need saves nothing: " in text
    assert json.loads(json.dumps(report.to_dict()))["kept_dense"] == list(report.kept_dense)


def test_a_budget_for_everything_changes_nothing(dense, tmp_path):
    model, report = compression.compress(dense, [(LINEAR, {})], budget=1.0)
    assert (report.rows, report.relative_error, model.shapes) == ((), 0.0, {})
    report.to_csv(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text(encoding="utf-8").startswith("path,in_features")
    assert "0 matrices" in report.table()
    report.plot(tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_reports_show_errors_of_outputs(dense, calibration, tmp_path):
    _, report = compressed(dense, calibration, {"data_aware": True, "bond": 3})
    text = report.table(120)
    assert max(map(len, text.splitlines())) <= 120
    for row in report.rows:
        (line,) = [line for line in text.splitlines() if line.lstrip().startswith(f"{row.path} ")]
        for error in (row.relative_error, row.svd_error, row.output_error):
            assert f"{error:.4f}" in line
        assert f"{row.svd_output_error:.4f} {row.data_svd_output_error:.4f}" in " ".join(
            line.split()
        )
    markdown = report.to_markdown().splitlines()
    assert "data-aware SVD output error" in markdown[0]
    assert {line.count("|") for line in markdown[: 2 + len(report.rows)]} == {16}
    report.to_csv(tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", encoding="utf-8") as file:
        for read, row in zip(csv.DictReader(file), report.rows, strict=True):
            assert float(read["output_error"]) == row.output_error
            assert read["method"] == "data-aware"
    assert f"of the outputs {report.output_error:.4f}" in report.summary()


def _singular(calibration):
    statistics = {
        path: dataclasses.replace(entry, covariance=np.full_like(entry.covariance, np.nan))
        for path, entry in calibration.statistics.items()
    }
    return compression.Calibration(statistics, 8)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"data_aware": True, "bond": 2}, {"calibration": None}, "data_aware=True of .* needs"),
        ({"bond": 2, "search": True, "cores": 3}, {}, "low rank is always"),
        ({"search": True}, {}, "search=True needs a size: give compress a budget"),
        ({"search": True, "tolerance": 0.1}, {}, "leave it out with search=True"),
        ({"data_aware": True, "gauge": "identity"}, {}, "is exact already; leave out data_aware"),
        ({"data_aware": 1}, {}, "data_aware=1 must be true or false"),
        ({"ridge": 0.1, "bond": 2}, {}, "ridge belongs to data_aware=True"),
        ({"ridge": -1, "data_aware": True}, {}, "ridge=-1 must be a finite number"),
        (
            {},
            {"allocation": "best", "budget": 0.5},
            "allocation='best' must be one of 'error', 'first",
        ),
        ({}, {"allocation": "first_order"}, "divides a budget; give one"),
        (
            {},
            {"allocation": "first_order", "budget": 0.5, "calibration": None},
            "allocation='first_order' needs calibration=",
        ),
        ({"data_aware": True, "search": True}, {"budget": 0.01}, "smallest feasible budget"),
    ],
)
def test_impossible_requests_are_refused_before_any_work(
    dense, calibration, settings, options, message, monkeypatch
):
    monkeypatch.setattr(mpo, "decompose_with_spectra", lambda *a: pytest.fail("work was done"))
    options = {"calibration": calibration} | options
    for function in (compression.compress, compression.check_rules):
        with pytest.raises(ValueError, match=message):
            function(dense, [(LINEAR, settings)], **options)


def test_unusable_calibrations_are_refused_before_any_work(dense, calibration, monkeypatch):
    monkeypatch.setattr(mpo, "decompose_with_spectra", lambda *a: pytest.fail("work was done"))
    without = compression.Calibration(
        {p: dataclasses.replace(s, gradient=None) for p, s in calibration.statistics.items()}, 8
    )
    unseen = compression.Calibration(
        {p: dataclasses.replace(s, gradient=0.0) for p, s in calibration.statistics.items()}, 8
    )
    aware, first_order = {"data_aware": True}, {"allocation": "first_order", "budget": 0.5}
    cases = [
        (helpers.model(SETTINGS, seed=1), calibration, {}, {"bond": 2}, "of another model"),
        (dense, _singular(calibration), aware, {"bond": 2}, "query, calibrated with .* NaN"),
        (dense, without, {}, first_order, "needs gradients: call compression.calibrate with loss="),
        (dense, unseen, {}, first_order, "its gradients are all zero"),
    ]
    for model, wrong, settings, options, message in cases:
        for function in (compression.compress, compression.check_rules):
            with pytest.raises(ValueError, match=message):
                function(model, [(LINEAR, settings)], calibration=wrong, **options)


@pytest.fixture
def factorised(monkeypatch):
    """Sizes of all matrices whose eigenvectors are computed."""
    sizes, eigh = [], np.linalg.eigh

    def counted(a):
        sizes.append(a.shape[0])
        return eigh(a)

    monkeypatch.setattr(np.linalg, "eigh", counted)
    return sizes


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # query, key, value of one layer share a covariance; (12, 12) is not wide: no root.
        ({"pattern": "layers/0/.*/(query|key|value)", "form": "low_rank"}, [12] * 6),
        # (12, 24) is wide: a triangular root for each layer, no eigenvectors.
        ({"pattern": "layers/.*/up", "form": "low_rank"}, [12] * 4),
        # Chains are whitened by the symmetric root: one of 12 for each layer.
        ({"pattern": "layers/.*/up", "search": True}, [12] * 6),
    ],
)
def test_every_covariance_and_every_matrix_is_factorised_once(dense, factorised, rule, expected):
    """Spectra, chains and report share them: one for a matrix in each norm, one for a root."""
    calibration = compression.calibrate(dense, [BATCH])
    pattern = rule.pop("pattern")
    rules = [(pattern, {"data_aware": True, **rule})]
    _, report = compression.compress(
        dense, rules, budget=0.97, calibration=calibration, keep_dense=False
    )
    assert len(report.rows) in (2, 3)
    assert sorted(factorised)[-len(expected) :] == expected == [12] * len(factorised)
    # A second compression with this calibration needs no root again.
    before = len(factorised)
    compression.compress(dense, rules, budget=0.97, calibration=calibration, keep_dense=False)
    roots = 2 if "search" in rule else 0
    assert len(factorised) - before == before - roots
