"""Bad input to the kernels: one clear message that names argument, value and what is allowed."""

import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import mpo
from tests.mpo import helpers

SHAPE = mpo.MPOShape((2, 3, 2), (3, 2, 2))
CORES = helpers.random_cores(SHAPE, 0)


def matrix():
    return helpers.random_matrix(SHAPE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("gauge", [*helpers.GAUGES, "identity"])
def test_non_finite_weights(value, gauge):
    w = matrix()
    w[3, 4] = value
    with pytest.raises(ValueError, match=r"w holds NaN or infinite entries"):
        mpo.decompose(w, SHAPE, gauge)


def test_activations_that_are_not_floating():
    cores = mpo.decompose(np.eye(12, dtype=np.float32), SHAPE)
    for call in (mpo.apply, lambda cores, x: mpo.apply(cores, x, plan="rebuild")):
        with pytest.raises(ValueError, match=r"x has dtype int32; activations must be floating"):
            call(cores, jnp.ones((2, 12), jnp.int32))


def test_row_numbers_that_are_not_integers():
    cores = mpo.decompose(np.eye(12, dtype=np.float32), SHAPE)
    with pytest.raises(ValueError, match=r"ids have dtype float32"):
        mpo.embed(cores, jnp.ones((2,), jnp.float32), SHAPE)


def test_features_that_are_not_integers():
    with pytest.raises(TypeError):
        mpo.MPOShape((2, 2), (2, 2), in_features=3.5)


@pytest.mark.parametrize("shape", [(12, 11), (144,), (11, 12), (24, 6)])
def test_wrong_product_of_factors(shape):
    for xp in (np, jnp):
        with pytest.raises(ValueError, match=r"w has shape .* but the factor lists"):
            mpo.decompose(xp.zeros(shape), SHAPE)


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64, jnp.bfloat16])
def test_weights_of_other_dtypes(dtype):
    for xp in (np, jnp):
        with pytest.raises(ValueError, match=r"w has dtype .* float32 or float64"):
            mpo.decompose(xp.zeros((12, 12), dtype), SHAPE)


def test_unknown_gauge():
    message = r"gauge='middle' must be one of .*'central'"
    for run in (
        lambda: mpo.decompose(matrix(), SHAPE, "middle"),
        lambda: mpo.canonicalize(CORES, "middle"),
        lambda: mpo.truncate(CORES, 2, gauge="middle"),
    ):
        with pytest.raises(ValueError, match=message):
            run()


def test_identity_is_no_gauge_to_round_in():
    with pytest.raises(ValueError, match="gauge='identity' must be one of 'central'"):
        mpo.canonicalize(CORES, "identity")


def test_identity_gauge_with_cut_bonds():
    with pytest.raises(ValueError, match=r"identity gauge needs bonds \(6, 4\).*'central'"):
        mpo.decompose(matrix(), SHAPE.with_bonds(3), "identity")


def test_unknown_truncation_method():
    with pytest.raises(ValueError, match=r"method='random' must be one of 'sequential'"):
        mpo.truncate(CORES, 2, method="random")


@pytest.mark.parametrize(
    ("bonds", "message"),
    [
        (0, r"bond 1 is 0, outside 1|bond cap=0 must be an integer"),
        ((7, 4), r"bonds \(7, 4\) exceed the current bonds \(6, 4\)"),
        ((6, 0), r"bond 2 is 0, outside 1..4"),
        ((6,), r"1 entries; a chain of 3 cores has 2 inner bonds"),
    ],
)
def test_bonds_outside_their_range(bonds, message):
    for run in (mpo.truncate, mpo.slice_bonds):
        with pytest.raises(ValueError, match=message):
            run(CORES, bonds)


def test_bonds_can_only_shrink():
    small = mpo.truncate(CORES, (3, 2))
    with pytest.raises(ValueError, match=r"exceed the current bonds \(3, 2\)"):
        mpo.truncate(small, (4, 2))
    assert mpo.truncate(small, 100)[0].shape == small[0].shape


def test_unknown_strategy():
    cores = tuple(map(jnp.asarray, CORES))
    with pytest.raises(ValueError, match="strategy='guess' must be one of 'rebuild'"):
        mpo.apply(cores, jnp.zeros((2, 12)), plan="guess")


@pytest.mark.parametrize("width", [11, 13])
def test_activations_of_a_wrong_width(width):
    cores = tuple(map(jnp.asarray, CORES))
    plan = mpo.plan(SHAPE, tokens=2, training=False, prepared=True)
    for run in (
        lambda x: mpo.apply(cores, x),
        lambda x: mpo.apply_prepared(mpo.prepare(cores, plan), plan, x),
    ):
        with pytest.raises(ValueError, match=rf"x has shape \(2, {width}\).* 12 rows"):
            run(jnp.zeros((2, width)))


@pytest.mark.parametrize(
    "cores",
    [
        (np.zeros((1, 2, 3, 4)), np.zeros((5, 2, 2, 1))),
        (np.zeros((2, 2, 3, 4)), np.zeros((4, 2, 2, 1))),
        (np.zeros((1, 2, 3, 4)), np.zeros((4, 2, 2, 2))),
        (np.zeros((7, 1, 2, 3, 4)), np.zeros((7, 4, 2, 2, 1))),
    ],
    ids=["bond", "first", "last", "stacked"],
)
def test_cores_that_do_not_form_a_chain(cores):
    with pytest.raises(ValueError, match=r"do not form a chain.*jax\.vmap"):
        mpo.shape_from_cores(cores)


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_tolerance_outside_its_range(tolerance):
    with pytest.raises(ValueError, match=r"tolerance=.* must be a finite number .* below 1"):
        mpo.bonds_for_tolerance([np.ones(3)], tolerance)


@pytest.mark.parametrize("bonds", [(1, 1), (0,), 0])
def test_error_bound_of_wrong_bonds(bonds):
    with pytest.raises(ValueError, match="bonds must be 1 integers of at least 1"):
        mpo.truncation_error_bound([np.ones(3)], bonds)
