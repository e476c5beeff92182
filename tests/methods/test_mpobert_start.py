"""How an MPOBERT starts: identity with its teacher, scalings, least squares, from scratch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, models, mpo
from mpojax.methods import mpobert
from mpojax.methods.mpobert import fit as mpobert_fit
from mpojax.methods.mpobert import start as mpobert_start

SMALL = {
    "vocab_size": 60,
    "embedding_size": 8,
    "hidden_size": 16,
    "num_heads": 2,
    "max_positions": 16,
}
IDS = jnp.asarray(np.random.default_rng(0).integers(1, 60, (2, 8)), jnp.int32)


def _teacher(num_layers: int = 4, seed: int = 1, **changes) -> models.Model:
    """A trained-looking teacher: everything random, of a scale that matters."""
    config, _ = mpobert.settings(num_layers=num_layers, **SMALL)
    config = dataclasses.replace(
        config, **{"layer_groups": 1, "shared_roles": models.EncoderConfig.shared_roles, **changes}
    )
    rng = np.random.default_rng(seed)
    arrays = {
        name: (0.3 * rng.standard_normal(size)).astype(np.float32)
        for name, size in models.array_shapes(config).items()
    }
    return models.from_arrays(config, {}, arrays)


@pytest.fixture(scope="module")
def teacher():
    return _teacher()


@pytest.fixture(scope="module")
def unshared_teacher():
    return _teacher(layer_groups=None)


def _assert_equal_logits(model, reference):
    for found, expected in zip(model(IDS), reference(IDS), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 8, "groups": 2, "adapter_rank": 2, "adapt_outside": True},
        {"num_layers": 6, "num_cores": 3, "bias_and_norm": "per_layer", "share_auxiliary": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("gauge", ["central", "symmetric", "identity"])
def test_a_copy_is_the_teacher_repeated(teacher, changes, gauge):
    config, shapes = mpobert.settings(**{"num_layers": 4, **SMALL, **changes})
    model = mpobert_start.from_teacher(teacher, config, shapes, gauge=gauge)
    _assert_equal_logits(model, models.reconfigure(teacher, num_layers=config.num_layers))


def test_as_many_blocks_as_layers_are_an_unshared_teacher(unshared_teacher):
    config, shapes = mpobert.settings(num_layers=4, groups=4, bias_and_norm="per_layer", **SMALL)
    model = mpobert_start.from_teacher(unshared_teacher, config, shapes)
    _assert_equal_logits(model, unshared_teacher)


def test_dense_models_continue_a_teacher_too(teacher):
    unshared = dataclasses.replace(teacher.config, layer_groups=None, num_layers=6)
    model = mpobert_start.from_teacher(teacher, unshared, {})
    _assert_equal_logits(model, models.reconfigure(teacher, num_layers=6))


@pytest.mark.parametrize(
    ("scaling", "ratio", "depth"),
    [
        ("none", 1.0, 48),
        ("paper_algorithm", 0.0104167, 48),
        ("theory", 0.1020621, 48),
        ("theory_each_core", 0.1220898, 48),
    ],
)
def test_scalings_shrink_the_matrices_of_layers_without_a_teacher(teacher, scaling, ratio, depth):
    """Section 3 of the paper and corollary A.2: the factor to the power of four cores."""
    config, shapes = mpobert.settings(num_layers=depth, **SMALL)
    model = mpobert_start.from_teacher(
        teacher, config, shapes, scaling=scaling, num_teacher_layers=24
    )
    arrays = models.to_arrays(compression.merge(model))
    for role in ("attention/query", "feed_forward/down"):
        norms = [np.linalg.norm(arrays[f"layers/{i}/{role}/kernel"]) for i in (0, 23, 24, 47)]
        np.testing.assert_allclose(norms[1:], [norms[0], *[ratio * norms[0]] * 2], rtol=1e-4)
    assert mpobert_start.factor(scaling, depth) ** 4 == pytest.approx(ratio, rel=1e-5)


def test_factors_of_the_specification():
    assert mpobert_start.factor("paper_algorithm", 48) == pytest.approx(0.3194716, rel=1e-6)
    assert mpobert_start.factor("theory", 48) == pytest.approx(0.5652181, rel=1e-6)
    assert mpobert_start.factor("theory_each_core", 48) == pytest.approx(0.5911121, rel=1e-6)
    # With two factors the general rule is the paper's exponent.
    assert mpobert_start.factor("theory_each_core", 48, 3) == mpobert_start.factor("paper_text", 48)


def test_random_cores_are_drawn_for_each_layer_without_a_teacher(teacher):
    config, shapes = mpobert.settings(num_layers=8, **SMALL)
    model = mpobert_start.from_teacher(teacher, config, shapes, scaling="paper_text")
    arrays = models.to_arrays(model)
    cores = [arrays[f"layers/{i}/attention/query/cores/1"] for i in range(8)]
    np.testing.assert_array_equal(cores[0], cores[3])
    assert not np.allclose(cores[3], cores[4])
    assert not np.allclose(cores[4], cores[5])
    shape = shapes["layers/0/attention/query"].core_shapes[1]
    expected = (2 * 8) ** -0.25 * np.sqrt(2 / (shape[0] * shape[1] + shape[2] * shape[3]))
    np.testing.assert_allclose(np.std(np.stack(cores[4:])), expected, rtol=0.2)


def test_layers_fit_their_own_matrices_by_least_squares(unshared_teacher):
    config, shapes = mpobert.settings(num_layers=4, **SMALL)
    model = mpobert_start.from_teacher(unshared_teacher, config, shapes)
    chosen = mpobert_start.from_teacher(unshared_teacher, config, shapes, central=2)
    theirs = models.to_arrays(unshared_teacher)
    fitted, of_layer = (models.to_arrays(compression.merge(m)) for m in (model, chosen))
    for layer in range(4):
        name = f"layers/{layer}/attention/query/kernel"
        w = theirs[name]
        mean = np.mean([theirs[f"layers/{i}/attention/query/kernel"] for i in range(4)], axis=0)
        # Better than the mean itself, which is where the fit begins.
        assert np.linalg.norm(fitted[name] - w) < 0.95 * np.linalg.norm(mean - w)
        error = np.linalg.norm(of_layer[name] - w) / np.linalg.norm(w)
        assert (error < 1e-5) == (layer == 2)


def test_shared_auxiliary_cores_are_those_of_the_mean(unshared_teacher):
    config, shapes = mpobert.settings(num_layers=4, groups=2, share_auxiliary=True, **SMALL)
    model = mpobert_start.from_teacher(unshared_teacher, config, shapes)
    ours = models.to_arrays(compression.merge(model))
    theirs = models.to_arrays(unshared_teacher)
    for first in (0, 2):
        both = [theirs[f"layers/{first + i}/attention/query/kernel"] for i in (0, 1)]
        found = ours[f"layers/{first}/attention/query/kernel"]
        np.testing.assert_allclose(found, np.mean(both, axis=0), rtol=0, atol=1e-5)


def test_layers_that_share_nothing_can_be_scaled(teacher):
    config, shapes = mpobert.settings(num_layers=8, groups=8, share_auxiliary=True, **SMALL)
    model = mpobert_start.from_teacher(teacher, config, shapes, scaling="theory")
    arrays = models.to_arrays(compression.merge(model))
    norms = [np.linalg.norm(arrays[f"layers/{i}/attention/out/kernel"]) for i in (3, 4)]
    np.testing.assert_allclose(norms[1] / norms[0], (2 * 8) ** -0.5, rtol=1e-4)


def test_a_fit_finds_auxiliary_cores_that_exist():
    shape = mpobert.chain(16, 64)
    rng = np.random.default_rng(0)
    start = mpo.decompose(rng.standard_normal((16, 64)), shape)
    other = tuple(
        core if k == shape.central else core + 0.1 * rng.standard_normal(core.shape)
        for k, core in enumerate(start)
    )
    w = mpo.to_matrix(other, shape)
    before = np.linalg.norm(mpo.to_matrix(start, shape) - w) / np.linalg.norm(w)
    cores, error = mpobert_fit.fit_auxiliary(w, start, shape, sweeps=100, tolerance=0.0)
    assert error < 0.05 * before
    np.testing.assert_array_equal(cores[shape.central], start[shape.central])
    rebuilt = np.linalg.norm(mpo.to_matrix(cores, shape) - w) / np.linalg.norm(w)
    np.testing.assert_allclose(rebuilt, error, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("bond", [None, 6])
def test_fits_never_get_worse(bond):
    shape = mpobert.chain(16, 64).with_bonds(bond)
    rng = np.random.default_rng(1)
    start = mpo.decompose(rng.standard_normal((16, 64)), shape)
    w = rng.standard_normal((16, 64))
    errors = [mpobert_fit.fit_auxiliary(w, start, shape, sweeps=n)[1] for n in (0, 1, 4)]
    assert errors[0] >= errors[1] >= errors[2] - 1e-12
    assert all(np.isfinite(errors))


def test_zero_and_rank_deficient_teachers_give_finite_cores(unshared_teacher):
    arrays = models.to_arrays(unshared_teacher)
    arrays |= {name: np.zeros_like(a) for name, a in arrays.items() if "query/kernel" in name}
    column = np.ones((16, 1), np.float32)
    arrays |= {name: column @ column.T for name in arrays if "key/kernel" in name}
    flat = models.from_arrays(unshared_teacher.config, {}, arrays)
    config, shapes = mpobert.settings(num_layers=4, **SMALL)
    model = mpobert_start.from_teacher(flat, config, shapes)
    assert all(np.isfinite(array).all() for array in models.to_arrays(model).values())
    merged = models.to_arrays(compression.merge(model))
    np.testing.assert_allclose(merged["layers/1/attention/key/kernel"], 1.0, atol=1e-4)
    np.testing.assert_array_equal(merged["layers/1/attention/query/kernel"], 0.0)


@pytest.mark.parametrize("init", mpobert_start.INITS)
def test_inits_from_scratch(init):
    config, shapes = mpobert.settings(num_layers=3, **SMALL)
    model = mpobert_start.from_scratch(config, shapes, init=init, stddev=0.1)
    dense = models.to_arrays(compression.merge(model))
    kernels = [dense[f"layers/{i}/feed_forward/up/kernel"] for i in range(3)]
    if init == "xavier":
        assert not np.allclose(kernels[0], kernels[1])
    else:
        np.testing.assert_allclose(kernels[0], kernels[2], atol=1e-6)
        np.testing.assert_allclose(np.std(kernels[0]), 0.1, rtol=0.1)
    np.testing.assert_allclose(np.std(dense["embeddings/word/table"]), 0.02, rtol=0.2)
    assert np.all(dense["layers/1/attention_norm/scale"] == 1.0)
    again = mpobert_start.from_scratch(config, shapes, init=init, stddev=0.1)
    for name, array in models.to_arrays(again).items():
        np.testing.assert_array_equal(array, models.to_arrays(model)[name])


def test_deviations_of_what_is_fresh(teacher):
    config, shapes = mpobert.settings(num_layers=4, adapter_rank=16, **SMALL)
    start = {"adapter_stddev": 0.3}
    scratch = mpobert_start.from_scratch(config, shapes, stddev=0.1, **start)
    taught = mpobert_start.from_teacher(teacher, config, shapes, **start)
    for model in (scratch, taught):
        arrays = models.to_arrays(model)
        down = [arrays[f"layers/{i}/attention/query/adapter/down"] for i in range(4)]
        np.testing.assert_allclose(np.std(down), 0.3, rtol=0.1)
        assert not arrays["layers/0/attention/query/adapter/up"].any()
    arrays = models.to_arrays(scratch)
    np.testing.assert_allclose(np.std(arrays["pooler/kernel"]), 0.1, rtol=0.2)
    np.testing.assert_allclose(np.std(arrays["embeddings/word/table"]), 0.02, rtol=0.2)


def test_the_symmetric_gauge_has_the_norms_of_the_released_code():
    """Section 3 of the specification: norms of the central cores of a random start."""
    for size, norm in (((768, 768), 13.73), ((768, 3072), 16.41)):
        w = np.random.default_rng(0).normal(0.0, 0.02, size)
        shape = mpobert.chain(*size)
        cores = mpo.decompose(w, shape, "symmetric")
        np.testing.assert_allclose(np.linalg.norm(cores[shape.central]), norm, rtol=2e-3)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"hidden_size": 32}, {}, "hidden_size: 16 in the teacher, 32 here"),
        ({"vocab_size": 61}, {}, "vocab_size: 60 in the teacher, 61 here"),
        ({"activation": "relu"}, {}, "activation: 'gelu_tanh' in the teacher, 'relu' here"),
        ({"pooler_activation": "relu"}, {}, "pooler_activation: 'tanh' in the teacher"),
        ({}, {"scaling": "half"}, "scaling='half' must be one of 'none', 'paper_text'"),
        (
            {"num_layers": 8, "share_auxiliary": True},
            {"scaling": "theory"},
            "have no auxiliary cores of their own; use scaling='none'",
        ),
        ({}, {"central": 4}, "central=4 must be one of 'mean' or an integer from 0 to 3"),
        ({}, {"central": "first"}, "central='first' must be one of 'mean'"),
    ],
)
def test_teachers_that_do_not_fit(teacher, changes, options, message):
    config, shapes = mpobert.settings(**{"num_layers": 4, **SMALL, **changes})
    with pytest.raises(ValueError, match=message):
        mpobert_start.from_teacher(teacher, config, shapes, **options)


def test_teachers_of_another_kind(teacher, unshared_teacher):
    config, shapes = mpobert.settings(num_layers=4, **SMALL)
    chains = mpobert_start.from_teacher(teacher, config, shapes)
    with pytest.raises(ValueError, match=r"compression.merge\(teacher\)"):
        mpobert_start.from_teacher(chains, config, shapes)
    adapted = compression.add_adapters(teacher, [("pooler", {"rank": 2})], rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="the teacher has adapters; merge it before"):
        mpobert_start.from_teacher(adapted, config, shapes)
    with pytest.raises(ValueError, match="share dense matrices that differ between layers"):
        mpobert_start.from_teacher(unshared_teacher, teacher.config, {})
    with pytest.raises(ValueError, match="init='ones' must be one of"):
        mpobert_start.from_scratch(config, shapes, init="ones")
