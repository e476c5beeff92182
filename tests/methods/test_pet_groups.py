"""Scores of groups: the identities that they obey, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpojax import mpo
from mpojax.methods.pet import masks as pet_masks
from mpojax.methods.pet import scores as pet_scores
from mpojax.methods.pet.groups import Chain, Entries, Module

TOLERANCE = 1e-12
# Each shape is compiled.
some = settings(max_examples=8)


@st.composite
def chains(draw):
    """(seed, in factors, out factors, bonds) of two to four cores."""
    n = draw(st.integers(2, 4))
    factor = st.lists(st.integers(1, 3), min_size=n, max_size=n)
    bonds = draw(st.lists(st.integers(1, 4), min_size=n - 1, max_size=n - 1))
    return draw(st.integers(0, 10**6)), draw(factor), draw(factor), bonds


def make(seed, in_factors, out_factors, bonds):
    """Random cores, the gradients of a tanh regression on their matrix, W and dL/dW."""
    rng = np.random.default_rng(seed)
    ends = (1, *bonds, 1)
    cores = [
        rng.standard_normal((ends[k], i, j, ends[k + 1]))
        for k, (i, j) in enumerate(zip(in_factors, out_factors, strict=True))
    ]
    w = _matrix(cores)
    x, y = (rng.standard_normal((5, size)) for size in w.shape)
    z = np.tanh(x @ w)
    g = x.T @ (2 * (z - y) * (1 - z**2) / y.size)
    return cores, [_gradient(cores, g, k) for k in range(len(cores))], w, g


def _matrix(cores):
    whole = cores[0]
    for core in cores[1:]:
        whole = np.einsum("aijb,bklc->aikjlc", whole, core)
        a, i, k, j, m, c = whole.shape
        whole = whole.reshape(a, i * k, j * m, c)
    return whole[0, :, :, 0]


def _gradient(cores, g, k):
    """dL/dT_k by its entries: the matrix is linear in them."""
    found = np.zeros(cores[k].shape)
    for place in np.ndindex(*found.shape):
        unit = np.zeros(found.shape)
        unit[place] = 1.0
        found[place] = np.sum(_matrix([*cores[:k], unit, *cores[k + 1 :]]) * g)
    return found


def scores_of(cores, grads):
    names = tuple(map(str, range(len(cores))))
    spec = {"unit": Chain(names)}
    arrays = (dict(zip(names, part, strict=True)) for part in (cores, grads))
    return jax.jit(lambda *arrays: pet_scores.score_groups(*arrays, spec)["unit"])(*arrays)


def close(one, other, scale=1.0):
    np.testing.assert_allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * (1 + abs(scale)))


@some
@given(chains())
def test_every_core_and_every_bond_has_the_same_sum(chain):
    """Euler's identity, and one side of a bond counts what both sides do."""
    with jax.enable_x64(True):
        cores, grads, w, g = make(*chain)
        whole = np.sum(w * g)
        size = sum(np.sum(np.abs(c * d)) for c, d in zip(cores, grads, strict=True))
        for core, grad in zip(cores, grads, strict=True):
            close(np.sum(core * grad), whole, size)
        for k, scores in enumerate(scores_of(cores, grads)):
            right = -np.sum(cores[k + 1] * grads[k + 1], axis=(1, 2, 3))
            np.testing.assert_allclose(scores, right, rtol=0, atol=TOLERANCE * (1 + size))
            close(float(np.sum(scores)), -whole, size)
            for index in range(cores[k].shape[3]):
                part = list(cores)
                part[k] = np.zeros_like(cores[k])
                part[k][..., index] = cores[k][..., index]
                close(float(scores[index]), -np.sum(_matrix(part) * g), size)


@some
@given(chains())
def test_a_loss_that_is_linear_in_the_matrix_changes_by_the_score(chain):
    with jax.enable_x64(True):
        cores, grads, w, g = make(*chain)  # gradients of <W, g>, too
        size = np.sum(np.abs(w * g))
        for k, of_bond in enumerate(scores_of(cores, grads)):
            for index in range(len(of_bond)):
                less = [core.copy() for core in cores]
                less[k][..., index] = 0.0
                change = np.sum(_matrix(less) * g) - np.sum(w * g)
                close(float(of_bond[index]), change, 100 * size)


def _open_bond(cores, grads):
    """S[a, b] = sum of T_0[..., a] * dL/dT_0[..., b]."""
    return np.tensordot(cores[0], grads[0], axes=((0, 1, 2),) * 2)


@some
@given(chains(), st.integers(0, 1000))
def test_changes_of_basis(chain, seed):
    """A diagonal one moves no score of an entry, an orthogonal one rotates the open bond."""
    with jax.enable_x64(True):
        cores, grads, _, _ = make(*chain)
        rng, d = np.random.default_rng(seed), cores[0].shape[3]
        factors = np.exp(rng.standard_normal(d))
        scaled = [cores[0] * factors, cores[1] / factors[:, None, None, None]]
        moved = [grads[0] / factors, grads[1] * factors[:, None, None, None]]
        for k in range(2):
            np.testing.assert_allclose(scaled[k] * moved[k], cores[k] * grads[k], rtol=1e-12)
        q = np.linalg.qr(rng.standard_normal((d, d)))[0]
        turned = [cores[0] @ q, np.tensordot(q.T, cores[1], axes=1)]
        grads_turned = [grads[0] @ q, np.tensordot(q.T, grads[1], axes=1)]
        before = _open_bond(cores, grads)
        after = _open_bond(turned, grads_turned)
        size = np.sum(np.abs(cores[0])) * np.sum(np.abs(grads[0]))
        np.testing.assert_allclose(after, q.T @ before @ q, rtol=0, atol=TOLERANCE * (1 + size))
        scores = scores_of(cores, grads)[0]
        np.testing.assert_allclose(np.diag(before), -scores, rtol=0, atol=TOLERANCE * (1 + size))
        close(np.trace(after), np.trace(before), size)


def test_low_rank_is_the_chain_of_two_cores():
    rng = np.random.default_rng(0)
    down, up = rng.standard_normal((6, 3)), rng.standard_normal((3, 5))
    g = rng.standard_normal((6, 5))
    spec = {"u": Chain(("down", "up"))}
    params = {"down": down, "up": up}
    with jax.enable_x64(True):
        scores = pet_scores.score_groups(params, {"down": g @ up.T, "up": down.T @ g}, spec)["u"][0]
    expected = [-(down[:, a] @ g @ up[a]) for a in range(3)]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    whole = mpo.low_rank(down @ up, 3)
    assert len(whole) == 2


@given(st.integers(0, 1000))
def test_gradients_follow_a_fixed_gauge_exactly(seed):
    """Those of a loss linear in the matrix, against those taken anew from the new factors."""
    rng = np.random.default_rng(seed)
    params = {"down": rng.standard_normal((6, 3)), "up": rng.standard_normal((3, 5))}
    g, spec = rng.standard_normal((6, 5)), {"u": Chain(("down", "up"))}

    def gradients(factors):
        return {"down": g @ factors["up"].T, "up": factors["down"].T @ g}

    masks = {"u": (np.ones(3, bool),)}
    new, _, (moved,) = pet_masks.regauge(params, masks, spec, [(gradients(params), False)])
    np.testing.assert_allclose(new["down"] @ new["up"], params["down"] @ params["up"], atol=1e-12)
    for name, expected in gradients(new).items():
        np.testing.assert_allclose(moved[name], expected, atol=1e-9)


def test_a_zero_start_scores_nothing_and_a_reference_is_subtracted():
    rng = np.random.default_rng(0)
    params = {"down": rng.standard_normal((6, 3)).astype(np.float32)}
    params["up"] = np.zeros((3, 5), np.float32)
    g = rng.standard_normal((6, 5)).astype(np.float32)
    grads = {"down": g @ params["up"].T, "up": params["down"].T @ g}
    for kind in (Chain, Entries, Module):
        spec = {"u": kind(("down", "up"))}
        scores = pet_scores.score_groups(params, grads, spec)
        assert not any(np.any(array) for array in scores["u"])
    spec = {"u": Entries(("b",))}
    value, slope = np.float32([1, 2, 3]), np.float32([1, 1, 2])
    found = pet_scores.score_groups({"b": value}, {"b": slope}, spec, {"b": np.float32([1, 1, 1])})
    np.testing.assert_array_equal(found["u"][0], [0, -1, -4])


@pytest.mark.parametrize("criterion", ["taylor", "hybrid"])
def test_criteria_over_batches(criterion):
    spec = {"u": Entries(("b",))}
    params = {"b": np.float32([1, 2, 3])}
    batches = [np.float32([1, -1, 0.5]), np.float32([-1, -1, 0.5])]
    sums = [pet_scores.batch_scores(params, {"b": g}, spec, criterion) for g in batches]
    total = jax.tree.map(jnp.add, *sums)
    found = pet_scores.final_scores(criterion, spec, params, total)["u"][0]
    expected = {
        "taylor": [0, 4, 3],
        "hybrid": [1, 8, 0.75],
    }[criterion]
    np.testing.assert_allclose(found, expected)


def test_controls_read_no_gradients():
    spec = {"u": Chain(("down", "up")), "v": Module(("b",))}
    params = {"down": np.eye(3), "up": np.diag([1.0, 2.0, 0.0]), "b": np.float32([3, -4])}
    found = pet_scores.final_scores("magnitude", spec, params)
    np.testing.assert_allclose(found["u"][0], [1, 2, 0])  # norms of what each component adds
    np.testing.assert_allclose(found["v"][0], 5)
    draws = [
        pet_scores.final_scores("random", spec, params, rng=np.random.default_rng(s))["u"][0]
        for s in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.any(draws[0] != draws[2])
    with pytest.raises(ValueError, match="reads no gradients"):
        pet_scores.batch_scores(params, params, spec, "random")


def test_entries_are_balanced_between_factors():
    spec = {"u": Entries(("a", "b")), "v": Module(("c",))}
    scores = {"u": (np.float64([1, 3]), np.float64([10, 30, 500])), "v": (np.float64(7),)}
    masks = {"u": (np.array([True, True]), np.array([True, True, False])), "v": (np.array(True),)}
    found = pet_scores.normalise(scores, masks, spec)
    np.testing.assert_allclose(found["u"][0], [5.5, 16.5])  # the unit's mean is 11
    np.testing.assert_allclose(found["u"][1][:2], [5.5, 16.5])
    np.testing.assert_allclose(found["v"][0], 7)
    found = pet_scores.normalise(scores, masks, spec, "factor_mean")
    np.testing.assert_allclose(found["u"][0], [0.5, 1.5])
    np.testing.assert_allclose(found["u"][1][:2], [0.5, 1.5])
    np.testing.assert_allclose(found["v"][0], 7)
    np.testing.assert_allclose(pet_scores.normalise(scores, masks, spec, "none")["u"][0], [1, 3])
