"""Matrices of experts approximated together: planted structure, steps against naive references."""

import numpy as np
import pytest

from mpojax import mpo
from mpojax.mpo.experts import fitting
from tools.benchmarks import mixtures

NUMBER, ROWS, COLUMNS = 3, 12, 8
SHAPE = mpo.MPOShape((2, 3, 2), (2, 2, 2), (3, 3))


def matrices_of(shape, seed=0, base=None, share=True):
    """A fit whose cores are random, and its matrices.

    Around a wide core those of experts differ from common ones, as where training began.
    """
    rng = np.random.default_rng(seed)
    cores = [
        rng.standard_normal(core if share and k == shape.central else (NUMBER, *core))
        for k, core in enumerate(shape.core_shapes)
    ]
    if shape is SHAPE:
        cores[::2] = [core[:1] + 0.3 * core for core in cores[::2]]
    fit = mpo.ExpertFit("planted", shape, tuple(cores), base)
    return fit, np.stack([fit.matrix(e) for e in range(NUMBER)])


def covariances(seed=1):
    rng = np.random.default_rng(seed)
    xs = rng.standard_normal((NUMBER, 50, ROWS)) * np.linspace(0.3, 2, ROWS)
    return [x.T @ x / 150 for x in xs]


BASE = 3 * np.random.default_rng(5).standard_normal((ROWS, COLUMNS))
TWO = mpo.MPOShape.low_rank(ROWS, COLUMNS, 2)
PLANTED = {
    "own": (TWO, None, False),
    "shared_first": (mpo.MPOShape.low_rank(ROWS, COLUMNS, 4), None, True),
    "shared_last": (mpo.MPOShape((ROWS, 1, 1), (1, COLUMNS, 1), (3, 1)), None, True),
    "base + own": (TWO, BASE, False),
    "base + shared_first": (TWO, BASE, True),
    "shared_centre": (SHAPE, None, True),
}


@pytest.mark.parametrize("form", PLANTED)
@pytest.mark.parametrize("aware", [False, True])
def test_planted_structure_is_found(form, aware):
    shape, base, share = PLANTED[form]
    planted, ws = matrices_of(shape, base=base, share=share)
    experts = mpo.ExpertMatrices(ws, covariances() if aware else None)
    norm = sum(experts._square(e, w) for e, w in enumerate(ws))
    if form == "shared_centre":
        found = [fitting.SharedCentre(experts, shape).fit(60, 40)]
    else:
        found = list(experts.fits(planted.num_params))
        assert all(fit.num_params <= planted.num_params for fit in found)
    best = min(found, key=lambda fit: fit.squared_error)
    assert best.form == form or form.startswith("base")
    # A base and differences are found by turns, which take many to end.
    assert best.squared_error < (0.02 if form.startswith("base") else 1e-7) * norm


def test_forms_are_as_good_as_their_closed_forms():
    _, ws = matrices_of(mpo.MPOShape.low_rank(ROWS, COLUMNS), share=False)
    metrics = covariances()
    fits = {f.form: f for f in mpo.ExpertMatrices(ws, metrics).fits(200)}
    own = sum(
        mpo.LowRank(w, s).squared_errors[fits["own"].shape.bonds[0]]
        for w, s in zip(ws, metrics, strict=True)
    )
    np.testing.assert_allclose(fits["own"].squared_error, own, rtol=1e-9)
    # One matrix of all experts, stacked in whitened rows.
    stacked = np.concatenate(
        [np.linalg.cholesky(s).T @ w for w, s in zip(ws, metrics, strict=True)]
    )
    values = np.linalg.svd(stacked, compute_uv=False)
    rank = fits["shared_last"].shape.bonds[0]
    np.testing.assert_allclose(
        fits["shared_last"].squared_error, np.sum(values[rank:] ** 2), rtol=1e-9
    )


def naive_step(ws, metrics, cores, k):
    """Core k (of one expert for k != 1) by least squares on its whole design matrix."""
    chosen = range(NUMBER) if k == 1 else [0]
    size = cores[1].size if k == 1 else cores[k][0].size
    rows, targets = [], []
    for e in chosen:
        half = np.linalg.cholesky(metrics[e]).T
        columns = []
        for unit in np.eye(size):
            own = [cores[0][e], cores[1], cores[2][e]]
            own[k] = unit.reshape(own[k].shape)
            columns.append((half @ mpo.to_matrix(tuple(own), SHAPE)).ravel())
        rows.append(np.stack(columns, axis=1))
        targets.append((half @ ws[e]).ravel())
    rows, targets = np.concatenate(rows), np.concatenate(targets)
    return np.linalg.norm(targets - rows @ np.linalg.lstsq(rows, targets, rcond=None)[0]) ** 2


@pytest.mark.parametrize("k", [0, 1, 2])
def test_a_step_is_the_least_squares_solution(k):
    rng = np.random.default_rng(2)
    ws, metrics = rng.standard_normal((NUMBER, ROWS, COLUMNS)), covariances()
    planted, _ = matrices_of(SHAPE, seed=3)
    experts = mpo.ExpertMatrices(ws, metrics)
    problem, cores = fitting.SharedCentre(experts, SHAPE), list(planted.cores)
    cores[k] = problem.centre(cores, 400) if k == 1 else problem._own(k, cores, 400)
    fit = mpo.ExpertFit("x", SHAPE, tuple(cores))
    error = experts.error(fit) if k == 1 else experts._square(0, ws[0] - fit.matrix(0))
    np.testing.assert_allclose(error, naive_step(ws, metrics, planted.cores, k), rtol=1e-6)


def test_sweeps_never_lose():
    rng = np.random.default_rng(4)
    experts = mpo.ExpertMatrices(rng.standard_normal((NUMBER, ROWS, COLUMNS)), covariances())
    problem = fitting.SharedCentre(experts, SHAPE)
    cores, errors = problem.start(experts.ws[0]), []
    for _ in range(6):
        fit = problem.swept(cores, steps=3)
        cores = fit.cores
        errors.append(fit.squared_error)
    assert errors == sorted(errors, reverse=True)


def test_a_budget_below_rank_one_has_no_form():
    experts = mpo.ExpertMatrices(np.ones((NUMBER, ROWS, COLUMNS)))
    assert not list(experts.fits(10))


def test_the_benchmark_of_random_mixtures(monkeypatch):
    monkeypatch.setattr(mixtures, "SIZES", {"tiny": (3, 12, 8)})
    rows = list(mixtures.rows_of("tiny", 0.7, 0.3))
    assert {row[1] for row in rows} >= {"own", "base + shared_first", "shared_centre"}
    assert all(float(row[3].removesuffix(" %")) <= 70 for row in rows)
