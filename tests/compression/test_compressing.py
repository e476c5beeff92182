"""compress and merge: exactness, bonds, budgets, sharing, reports."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import compression, models, mpo
from tests.io import helpers

LINEAR = ".*/(query|key|value|out|up|down)"
EVERYTHING = ".*"
IDS = jnp.asarray([[1, 5, 9, 2], [7, 0, 0, 0]])
MASK = jnp.asarray([[1, 1, 1, 1], [1, 1, 0, 0]])

run = jax.jit(lambda model: model(IDS, MASK))


@pytest.fixture(scope="module")
def dense():
    return helpers.model()


@pytest.mark.parametrize("gauge", ["central", "left", "right", "symmetric", "identity"])
def test_full_bonds_change_nothing(dense, gauge):
    model, report = compression.compress(dense, [(EVERYTHING, {"gauge": gauge, "cores": 3})])
    assert set(model.shapes) == set(dense.config.matrix_sizes())
    assert max(row.relative_error for row in report.rows) < 2e-6
    before, after = models.to_arrays(dense), models.to_arrays(compression.merge(model))
    assert set(before) == set(after)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=0, atol=3e-6 * np.abs(array).max())
    if gauge == "central":
        assert len(model.stacks) == 1
        np.testing.assert_allclose(run(model), run(dense), rtol=1e-4, atol=1e-4)


def test_a_cap_keeps_the_sequential_truncation(dense):
    model, report = compression.compress(
        dense, [(LINEAR, {"bond": 3, "cores": 3}), ("embeddings/word", {"rank": 3})]
    )
    before, merged = models.to_arrays(dense), models.to_arrays(compression.merge(model))
    assert model.shapes["embeddings/word"] == mpo.MPOShape.low_rank(40, 12, 3)
    assert len(report.rows) == 13
    for row in report.rows:
        key = f"{row.path}/table" if row.path.startswith("embeddings") else f"{row.path}/kernel"
        w = np.asarray(before[key], np.float64)
        error = np.linalg.norm(merged[key] - w) / np.linalg.norm(w)
        assert row.relative_error == pytest.approx(error, rel=1e-4)
        assert max(row.bonds) == 3
        assert 0.1 < row.relative_error <= row.error_bound + 1e-6
        if row.path == "embeddings/word":
            singular = np.linalg.svd(w, compute_uv=False)
            tail = np.sqrt((singular[3:] ** 2).sum() / (singular**2).sum())
            assert row.relative_error == pytest.approx(tail, rel=1e-5)
            assert row.error_bound == pytest.approx(tail, rel=1e-5)
    untouched = [name for name in before if "bias" in name or "norm" in name]
    for name in untouched:
        np.testing.assert_array_equal(merged[name], before[name])


def test_the_report_counts_what_the_model_holds(dense):
    model, report = compression.compress(dense, [(LINEAR, {})], bond=3)
    total = sum(models.count_parameters(model).values())
    arrays = models.to_arrays(model)
    assert total == sum(array.size for array in arrays.values())
    assert report.parameters == total
    assert report.dense_parameters == sum(a.size for a in models.to_arrays(dense).values())
    assert report.stored_bytes == sum(array.nbytes for array in arrays.values())
    saved = sum(row.dense_parameters - row.mpo_parameters for row in report.rows)
    assert report.dense_parameters - report.parameters == saved
    for row in report.rows:
        cores = [a for name, a in arrays.items() if name.startswith(f"{row.path}/cores/")]
        assert row.mpo_parameters == sum(core.size for core in cores)
        assert row.shape == model.shapes[row.path]
        w = models.to_arrays(dense)[f"{row.path}/kernel"]
        norm = np.linalg.norm(w)
        for spectrum, entropy in zip(report.spectra[row.path], row.entropy, strict=True):
            assert np.linalg.norm(spectrum) == pytest.approx(norm, rel=1e-5)
            p = spectrum**2 / norm**2
            assert entropy == pytest.approx(
                -np.sum(p * np.log(np.maximum(p, 1e-30))), rel=1e-4, abs=1e-6
            )


@pytest.mark.parametrize("budget", [0.55, 0.8, 1.0])
@pytest.mark.parametrize("share_bonds", [True, False])
def test_a_budget_is_met_and_used(dense, budget, share_bonds):
    rules = [(LINEAR + "|embeddings/word", {})]
    model, report = compression.compress(dense, rules, budget=budget, share_bonds=share_bonds)
    assert report.parameters <= budget * report.dense_parameters
    assert report.parameters >= 0.9 * budget * report.dense_parameters
    by_role = {}
    for row in report.rows:
        by_role.setdefault(row.role, set()).add(row.bonds)
    assert (budget == 1.0) == (not report.rows)  # nothing to save: all stay dense
    if share_bonds:
        assert {len(bonds) for bonds in by_role.values()} <= {1}
        assert len(model.stacks) == 1
    assert run(model).shape == (2, 4, 12)


def test_errors_fall_as_the_budget_grows(dense):
    errors = [
        compression.compress(dense, [(LINEAR, {})], budget=budget)[1].relative_error
        for budget in (0.5, 0.7, 0.9)
    ]
    assert errors[0] > errors[1] > errors[2] > 0


def test_pooling_serves_all_layers_of_a_role(dense):
    """With one layer exactly low rank, sharing still keeps what the other layer needs."""
    arrays = dict(models.to_arrays(dense))
    rng = np.random.default_rng(3)
    for i, rank in ((0, 1), (1, 12)):
        factors = rng.standard_normal((12, rank)), rng.standard_normal((rank, 12))
        arrays[f"layers/{i}/attention/query/kernel"] = (factors[0] @ factors[1]).astype(np.float32)
    model = models.from_arrays(dense.config, {}, arrays)
    rule = [("layers/./attention/query", {"form": "low_rank", "tolerance": 1e-4})]
    _, shared = compression.compress(model, rule)
    _, alone = compression.compress(model, rule, share_bonds=False)
    assert [row.bonds for row in alone.rows] == [(1,), (12,)]
    assert [row.bonds for row in shared.rows] == [(12,), (12,)]


def test_budget_leaves_fixed_rules_alone(dense):
    rules = [(".*/(query|key|value|out)", {"bond": 2}), (".*/(up|down)", {"form": "low_rank"})]
    model, report = compression.compress(dense, rules, budget=0.6)
    assert all(max(row.bonds) <= 2 for row in report.rows if "attention" in row.path)
    ranks = {row.bonds for row in report.rows if "feed_forward" in row.path}
    assert all(len(bonds) == 1 for bonds in ranks)
    assert report.parameters <= 0.6 * report.dense_parameters
    assert model.shapes["layers/0/feed_forward/up"].num_cores == 2


def test_an_integer_budget_is_a_number_of_parameters(dense):
    _, report = compression.compress(dense, [(LINEAR, {})], budget=2500)
    assert 2300 < report.parameters <= 2500
    _, same = compression.compress(dense, [(LINEAR, {})], budget=2500.0)
    assert same.parameters == report.parameters


@pytest.mark.parametrize("tolerance", [0.2, 0.5])
def test_a_tolerance_is_kept(dense, tolerance):
    _, report = compression.compress(
        dense, [(LINEAR, {"tolerance": tolerance, "form": "low_rank"})]
    )
    assert max(row.relative_error for row in report.rows) <= tolerance
    assert not any(row.shape.is_full for row in report.rows)


@pytest.mark.parametrize(
    ("rules", "options", "message"),
    [
        ([(LINEAR, {})], {"budget": 0.5, "bond": 3}, "budget and bond exclude each other"),
        ([(LINEAR, {})], {"budget": 0.0}, "budget=0.0 must be a fraction"),
        ([(LINEAR, {})], {"budget": 1.5}, "budget=1.5 must be a fraction"),
        ([(LINEAR, {})], {"budget": True}, "budget=True must be a fraction"),
        ([(LINEAR, {})], {"budget": 1}, r"budget=1 must .* \(use 1\.0 for all parameters\)"),
        ([(LINEAR, {})], {"budget": 2500.5}, "budget=2500.5 must .* or an integer above 1"),
        ([(LINEAR, {})], {"budget": math.inf}, "budget=inf must be a fraction"),
        ([(LINEAR, {})], {"budget": "half"}, "budget='half' must be a fraction"),
        ([(LINEAR, {"bond": 3})], {"budget": 0.5}, "nothing to choose: every rule fixes its bonds"),
        ([(LINEAR, {"tolerance": 0.1})], {"budget": 0.5}, "a tolerance and a budget exclude"),
        ([(LINEAR, {"gauge": "identity"})], {"budget": 0.5}, "gauge='identity' and a budget"),
    ],
)
def test_impossible_requests_are_refused(dense, rules, options, message):
    with pytest.raises(ValueError, match=message):
        compression.compress(dense, rules, **options)


def test_an_infeasible_budget_names_the_smallest(dense):
    with pytest.raises(ValueError, match="smallest feasible budget for these rules is") as error:
        compression.compress(dense, [(LINEAR, {})], budget=0.05)
    words = str(error.value).split("smallest feasible budget for these rules is ")[1].split()
    smallest, numbers = float(words[0]), int(words[1].strip("("))
    _, report = compression.compress(dense, [(LINEAR, {})], budget=smallest)
    assert report.parameters == numbers
    with pytest.raises(ValueError, match="smallest feasible"):
        compression.compress(dense, [(LINEAR, {})], budget=numbers - 1)


def test_non_finite_weights_are_named_before_work(dense):
    arrays = {name: np.array(a) for name, a in models.to_arrays(dense).items()}
    arrays["layers/1/attention/key/kernel"][0, 0] = np.nan
    model = models.from_arrays(dense.config, {}, arrays)
    with pytest.raises(ValueError, match=r"layers/1/attention/key \(1 of 144 elements\)"):
        compression.compress(model, [(LINEAR, {})])


def test_zero_matrices_compress(dense):
    arrays = dict(models.to_arrays(dense))
    arrays["pooler/kernel"] = np.zeros((12, 12), np.float32)
    model = models.from_arrays(dense.config, {}, arrays)
    small, report = compression.compress(model, [("pooler", {"bond": 2})])
    assert (report.rows[0].relative_error, report.rows[0].error_bound) == (0.0, 0.0)
    assert report.rows[0].entropy == (0.0,) * 4
    assert not np.any(models.to_arrays(compression.merge(small))["pooler/kernel"])


def test_compressing_in_two_steps(dense):
    first, _ = compression.compress(dense, [("pooler", {"bond": 2})])
    second, report = compression.compress(first, [("embeddings/word", {"bond": 2})])
    assert sorted(second.shapes) == ["embeddings/word", "pooler"]
    assert report.dense_parameters == sum(a.size for a in models.to_arrays(dense).values())
    with pytest.raises(
        ValueError, match="pooler, matched by rule 'pooler', is in MPO form already"
    ):
        compression.compress(second, [("pooler", {})])


def test_heads_are_matrices_too():
    settings = dataclasses.replace(helpers.SETTINGS, num_labels=3, pooling="mean")
    model, report = compression.compress(helpers.model(settings), [("head", {"rank": 2})])
    assert isinstance(model, models.SequenceClassifier)
    assert report.rows[0].mpo_parameters == 2 * (12 + 3)
    assert isinstance(compression.merge(model), models.SequenceClassifier)


def test_progress_counts_to_its_total(dense):
    calls = []
    rules = [(".*/up", {"bond": 2})]
    compression.compress(dense, rules, progress=lambda *call: calls.append(call))
    assert [call[0] for call in calls] == [1, 2, 3, 4]
    assert {call[1] for call in calls} == {4}
    assert {call[2] for call in calls} == {f"layers/{i}/feed_forward/up" for i in (0, 1)}


def test_full_bonds_need_one_decomposition(dense, monkeypatch):
    calls, decompose = [], mpo.decompose_with_spectra
    monkeypatch.setattr(mpo, "decompose", lambda *args: pytest.fail("decomposed again"))
    monkeypatch.setattr(
        mpo, "decompose_with_spectra", lambda *args: calls.append(1) or decompose(*args)
    )
    steps = []
    rules = [(".*/up", {}), ("pooler", {"gauge": "left", "bond": 10**6})]
    _, report = compression.compress(dense, rules, progress=lambda *step: steps.append(step[:2]))
    assert len(calls) == 3
    assert steps == [(1, 3), (2, 3), (3, 3)]
    for row in report.rows:
        w = models.to_arrays(dense)[f"{row.path}/kernel"]
        for spectrum in report.spectra[row.path]:
            assert np.linalg.norm(spectrum) == pytest.approx(np.linalg.norm(w), rel=1e-5)


def test_padding_rows_are_counted_and_dropped():
    settings = dataclasses.replace(helpers.SETTINGS, vocab_size=61)
    dense = helpers.model(settings)
    rule = {"in_factors": (4, 4, 4), "out_factors": (2, 3, 2)}
    model, report = compression.compress(dense, [("embeddings/word", rule)])
    row = report.rows[0]
    assert (row.in_features, math.prod(row.in_factors)) == (61, 64)
    table = models.to_arrays(compression.merge(model))["embeddings/word/table"]
    assert table.shape == (61, 12)
    assert row.relative_error < 2e-6
    assert "padded to 64x12" in report.table()
