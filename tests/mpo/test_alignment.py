"""Gauges of two chains made comparable: signs, rotations, invariant distances, golden figures."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpojax import mpo


def cores_of(w, shape, seed=None):
    """Symmetric gauge, as the authors', with a random sign for each bond's vectors."""
    cores = mpo.decompose(w, shape, "symmetric")
    if seed is None:
        return cores
    rng, cores = np.random.default_rng(seed), list(cores)
    for k in range(len(cores) - 1):
        signs = rng.choice([-1.0, 1.0], cores[k].shape[3])
        cores[k] = cores[k] * signs
        cores[k + 1] = cores[k + 1] * signs[:, None, None, None]
    return tuple(cores)


def pair(noise, num_inner_cores=3, seed=0, size=48):
    rng = np.random.default_rng(seed)
    teacher = rng.standard_normal((size, size))
    student = teacher + noise * rng.standard_normal((size, size))
    shape = mpo.MPOShape(
        (8, *(1,) * num_inner_cores, size // 8), (8, *(1,) * num_inner_cores, size // 8)
    )
    return cores_of(student, shape, seed + 1), cores_of(teacher, shape, seed + 2)


def halved(student, teacher):
    """The figure of the specification: over twice the teacher's mean square."""
    return float(mpo.core_distance(student, teacher)) / 2


@pytest.mark.parametrize(
    ("in_features", "out_features", "numbers"),
    [
        (768, 768, (921_600, 1_253_376, 1_585_152, 1_916_928)),
        (768, 3072, (3_686_400, 5_013_504, 6_340_608, 7_667_712)),
        (3072, 768, (3_686_400, 5_013_504, 6_340_608, 7_667_712)),
    ],
)
def test_published_counts(in_features, out_features, numbers):
    for num_inner_cores, count in enumerate(numbers):
        shape = mpo.over_parameterised_shape(in_features, out_features, num_inner_cores)
        assert shape.num_params == count
        assert shape.num_cores == num_inner_cores + 2
        assert set(shape.in_factors[1:-1]) <= {1}


@pytest.mark.parametrize(("noise", "signs", "aligned"), [(1e-6, 1e-9, 1e-10), (0.1, 0.6, 0.004)])
def test_alignment_reaches_the_published_figures(noise, signs, aligned, x64):
    found = []
    for seed in range(5):
        student, teacher = pair(noise, seed=seed)
        assert 0.5 < halved(student, teacher) < 1.5
        fixed = mpo.sign_fix(student), mpo.sign_fix(teacher)
        assert halved(*fixed) < signs
        moved = mpo.align(*fixed)
        found.append(halved(moved, fixed[1]))
        one, other = (mpo.to_matrix(c) for c in (moved, student))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * np.abs(other).max())
    assert np.mean(found) < aligned


def test_equal_matrices_align_to_nothing_but_raw_cores_differ(x64):
    student, teacher = pair(0.0)
    assert float(mpo.core_distance(student, teacher)) > 0.5
    moved = mpo.align(mpo.sign_fix(student), mpo.sign_fix(teacher))
    assert float(mpo.core_distance(moved, mpo.sign_fix(teacher))) < 1e-20


@given(st.integers(0, 10**6), st.floats(0.01, 2.0))
def test_with_three_cores_alignment_never_hurts(seed, noise):
    student, teacher = (mpo.sign_fix(c) for c in pair(noise, num_inner_cores=1, seed=seed, size=16))
    before = float(mpo.core_distance(student, teacher))
    assert float(mpo.core_distance(mpo.align(student, teacher), teacher)) <= before * (1 + 1e-5)


def test_projector_distance_is_invariant_and_core_distance_is_not(x64):
    student, teacher = pair(0.1)
    rng, turned = np.random.default_rng(9), list(student)
    for k in range(len(turned) - 1):
        q = np.linalg.qr(rng.standard_normal((turned[k].shape[3],) * 2))[0]
        turned[k] = turned[k] @ q
        turned[k + 1] = np.tensordot(q.T, turned[k + 1], axes=1)
    plain, rotated = (float(mpo.projector_distance(s, teacher)) for s in (student, tuple(turned)))
    np.testing.assert_allclose(rotated, plain, rtol=1e-10)
    assert float(mpo.projector_distance(teacher, teacher)) < 1e-12
    cores = [float(mpo.core_distance(s, teacher)) for s in (student, tuple(turned))]
    assert abs(cores[0] - cores[1]) > 1e-3


def test_projector_distance_by_hand(x64):
    student, teacher = pair(0.5, num_inner_cores=1, size=16)
    left = [c[0].reshape(-1, c[0].shape[3]) for c in (student, teacher)]
    right = [c[2].reshape(c[2].shape[0], -1).T for c in (student, teacher)]
    expected = np.mean(
        [np.sum((s @ s.T - t @ t.T) ** 2) / np.sum((t @ t.T) ** 2) for s, t in (left, right)]
    )
    np.testing.assert_allclose(mpo.projector_distance(student, teacher), expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["zero", "rank 1", "repeated"])
def test_matrices_without_a_unique_gauge(kind):
    rng = np.random.default_rng(0)
    w = {
        "zero": np.zeros((16, 16)),
        "rank 1": np.outer(rng.standard_normal(16), rng.standard_normal(16)),
        "repeated": np.eye(16),
    }[kind].astype(np.float32)
    shape = mpo.over_parameterised_shape(16, 16, 3)
    cores = mpo.sign_fix(mpo.decompose(w, shape, "symmetric"))
    moved = mpo.align(cores, mpo.sign_fix(mpo.decompose(w, shape, "symmetric")))
    for core in moved:
        assert np.isfinite(core).all()
    np.testing.assert_allclose(mpo.to_matrix(moved), w, rtol=0, atol=1e-6)
    assert np.isfinite(float(mpo.core_distance(moved, cores)))


def test_middle_cores_start_as_the_identity():
    w = np.random.default_rng(0).standard_normal((48, 48))
    shape = mpo.over_parameterised_shape(48, 48, 3)
    first, *middle, last = mpo.sign_fix(mpo.decompose(w, shape, "symmetric"))
    for core in middle:
        np.testing.assert_allclose(core[:, 0, 0, :], np.eye(core.shape[0]), rtol=0, atol=1e-10)
    grams = first.reshape(-1, first.shape[3]), last.reshape(last.shape[0], -1).T
    one, other = (g.T @ g for g in grams)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)
    np.testing.assert_allclose(one, np.diag(np.diag(one)), rtol=0, atol=1e-9)


def test_jax_cores_under_jit():
    import jax

    student, teacher = ([jnp.asarray(c, jnp.float32) for c in cores] for cores in pair(0.1))
    moved = jax.jit(lambda s, t: mpo.align(mpo.sign_fix(s), mpo.sign_fix(t)))(student, teacher)
    np.testing.assert_allclose(mpo.to_matrix(moved), mpo.to_matrix(tuple(student)), atol=1e-4)


def test_mistakes():
    student, teacher = pair(0.1)
    with pytest.raises(ValueError, match="cannot be compared with"):
        mpo.align(student[:-1], teacher)
    with pytest.raises(ValueError, match="num_inner_cores=-1 must be an integer"):
        mpo.over_parameterised_shape(8, 8, -1)
