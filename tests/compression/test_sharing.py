"""First cores that neighbouring layers share: chosen by error, stored once, saved and exported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mpojax as mj
from mpojax import models, nn
from mpojax.compression import choosing
from tests.models import small_language

CONFIG = dataclasses.replace(small_language.LLAMA, num_layers=4)
IDS = np.random.default_rng(0).integers(1, 20, (16, 12))
BATCHES = [{"input_ids": IDS}]


def random_model(same=()):
    """Layers 1 and 2 have the same matrices of these names."""
    model = models.build(CONFIG, rngs=nnx.Rngs(0))
    arrays = dict(models.to_arrays(model))
    for name in same:
        arrays[f"layers/2/{name}/kernel"] = arrays[f"layers/1/{name}/kernel"]
    return models.from_arrays(CONFIG, {}, arrays)


@pytest.fixture(scope="module")
def model():
    sizes = CONFIG.matrix_sizes()
    return random_model([p.removeprefix("layers/1/") for p in sizes if p.startswith("layers/1/")])


@pytest.fixture(scope="module")
def calibration(model):
    return mj.calibrate(model, BATCHES, curvature=True)


@pytest.fixture(scope="module")
def shared(model, calibration):
    return mj.compress(model, budget=0.7, calibration=calibration, method="shared")


def test_alike_layers_share_what_is_stored_once(model, calibration, shared):
    made, report = shared
    assert made.config.layer_groups == (1, 2, 1)
    assert made.config.shared_roles == ("central",)
    assert report.parameters <= 0.7 * report.dense_parameters
    assert report.parameters == sum(models.count_parameters(made).values())
    held = sum(row.dense_parameters - row.mpo_parameters for row in report.rows)
    assert held == report.dense_parameters - report.parameters
    names = models.to_arrays(made)
    assert "layers/1/feed_forward/up/cores/0" in names
    assert "layers/2/feed_forward/up/cores/0" not in names
    assert "first core shared by layers 1 to 2" in report.to_markdown()
    _, alone = mj.compress(model, budget=0.7, calibration=calibration, method="pivoted")
    losses = [sum(row.predicted_loss for row in each.rows) for each in (report, alone)]
    assert losses[0] < losses[1]


def test_sharing_is_kept_by_files_and_undone_by_merging(shared, tmp_path):
    made, ids = shared[0], jnp.asarray(IDS)
    expected = made(ids)
    mj.save(made, tmp_path / "own")
    loaded = mj.load(tmp_path / "own")
    assert models.count_parameters(loaded) == models.count_parameters(made)
    for other in (loaded, mj.merge(made), models.unshared(made), jax.jit(models.merged)(made)):
        np.testing.assert_allclose(other(ids), expected, atol=1e-4)
    mj.save(made, tmp_path / "factors", format="huggingface_mpo")
    assert (tmp_path / "factors" / "modeling_mpo.py").is_file()


def test_a_shared_core_has_one_gradient_and_generates(shared):
    made = shared[0]
    graph, cores, rest = nnx.split(made, nn.CentralCore, ...)
    ids = jnp.asarray(IDS)
    grads = jax.jit(
        jax.grad(lambda cores: jnp.sum(jnp.square(nnx.merge(graph, cores, rest)(ids))))
    )(cores)
    held = sum(leaf.size for leaf in jax.tree.leaves(grads))
    assert held == models.count_parameters(made)["central"]
    greedy = {"max_new_tokens": 3, "sampling": models.Sampling()}
    found = [models.generate(m, IDS[:1], **greedy).ids for m in (made, mj.merge(made))]
    np.testing.assert_array_equal(*found)


def test_layers_that_have_nothing_in_common_share_nothing():
    model = random_model()
    calibration = mj.calibrate(model, BATCHES, curvature=True)
    pair = [
        mj.compress(model, budget=0.7, calibration=calibration, method=method)[0]
        for method in ("shared", "pivoted")
    ]
    assert pair[0].config.layer_groups is None
    np.testing.assert_array_equal(*(each(jnp.asarray(IDS)) for each in pair))


# How the best is chosen: test_choosing.py; that sharing wins where layers are alike: above.
@pytest.mark.slow
def test_the_best_may_share(model):
    steps = []
    given = {"budget": 0.7, "calibration": IDS, "method": "best"}
    _, report = mj.compress(model, **given, progress=lambda *step: steps.append(step))
    assert choosing.SHARED in report.choice.found
    assert steps[-1][0] == steps[-1][1] == len(steps)


def test_an_encoder_decoder_cannot_share():
    encoder_decoder = models.build(small_language.T5, rngs=nnx.Rngs(0))
    batch = {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
    with pytest.raises(ValueError, match="neither a language model nor an encoder; take 'piv"):
        mj.compress(encoder_decoder, budget=0.7, calibration=[batch], method="shared")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share_bonds": True}, "share_bonds=True has all layers of a role keep one rank"),
        ({"rules": [mj.Rule("layers/[012]/.*")]}, "no layers have the same matrices"),
    ],
)
def test_layers_that_cannot_share_say_why(model, calibration, options, message):
    given = {"budget": 0.8, "calibration": calibration, "method": "shared"}
    with pytest.raises(ValueError, match=message):
        mj.compress(model, **given, **options)


def test_sizes_of_groups_are_checked():
    with pytest.raises(ValueError, match="sizes of groups must add up to num_layers=4"):
        dataclasses.replace(CONFIG, layer_groups=(1, 2), shared_roles=("central",))
