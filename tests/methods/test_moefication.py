"""Feed-forward blocks split into experts: all on is the dense model; groups that fire together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mpojax as mj
from mpojax import models
from mpojax.methods import moefication
from mpojax.methods.moefication import clustering, inputs, routers
from tests import marks
from tests.models import small_language

IDS = np.random.default_rng(0).integers(1, 20, (8, 9))
BLOCK = "layers/1/feed_forward"
MODELS = {
    "GELU with biases": dataclasses.replace(small_language.GPT2, num_layers=2),
    "gated": dataclasses.replace(small_language.LLAMA, num_layers=2),
    "T5": small_language.T5,
}


def model_of(name):
    return models.build(MODELS[name], rngs=nnx.Rngs(0))


@jax.jit
def outputs(model):
    ids = jnp.asarray(IDS)
    return model(ids, None, ids) if isinstance(model, models.EncoderDecoder) else model(ids)


@jax.jit
def of_block(model, x):
    """Output, statistics and routing of one feed-forward block."""
    block = model.tower.layer(1).feed_forward
    return *block(x), block.router(x)


@pytest.fixture(scope="module")
def gated():
    return model_of("gated")


@pytest.fixture(scope="module")
def split(gated):
    return mj.moefy(gated, experts=4, share=0.5, router="centre")


@pytest.mark.parametrize("name", MODELS)
def test_all_experts_on_are_the_dense_model(name):
    dense = model_of(name)
    half = mj.moefy(dense, experts=4, share=0.5, router="centre")
    assert half.config.experts_of(half.config.feed_forwards()[0]).k == 2
    whole = moefication.with_share(half, 1.0)
    np.testing.assert_allclose(outputs(whole), outputs(dense), atol=1e-5)
    added = sum(models.count_parameters(half).values()) - sum(
        models.count_parameters(dense).values()
    )
    blocks = len(dense.config.feed_forwards())
    biases = 3 * 16 if name.startswith("GELU") else 0
    assert added == blocks * (16 * 4 + 4 + biases)  # routers, and biases of the last map


def test_the_oracle_uses_the_most_active_groups(gated):
    """One block against a loop over tokens."""
    split = mj.moefy(gated, experts=4, share=0.5, router="truth")
    arrays = {n: np.float64(a) for n, a in models.to_arrays(split).items()}
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 16)).astype(np.float32)
    found, statistics, _ = of_block(split, x)
    assert float(statistics.tokens) == 5
    for row, y in zip(np.float64(x), found, strict=True):
        gate, up = (
            np.einsum("i,eij->ej", row, arrays[f"{BLOCK}/{n}/kernel"]) for n in ("gate", "up")
        )
        inner = gate / (1 + np.exp(-gate)) * up
        chosen = np.argsort(-np.abs(inner).sum(axis=1))[:2]
        expected = sum(inner[e] @ arrays[f"{BLOCK}/down/kernel"][e] for e in chosen)
        np.testing.assert_allclose(y, expected, atol=1e-5)


def test_centres_are_the_nearest_directions(split):
    arrays = models.to_arrays(split)
    x = np.random.default_rng(1).standard_normal((6, 16)).astype(np.float32)
    gate = arrays[f"{BLOCK}/gate/kernel"]
    centres = (gate / np.linalg.norm(gate, axis=1, keepdims=True)).mean(axis=2)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distances = np.linalg.norm(unit[:, None] - centres[None], axis=2)
    _, _, routing = of_block(split, x)
    np.testing.assert_array_equal(routing.experts, np.argsort(distances)[:, :2])


def test_balanced_groups_are_recovered_and_never_get_worse():
    rng = np.random.default_rng(0)
    planted = np.repeat(np.arange(4), 6)
    points = 5 * np.eye(4)[planted] + 0.1 * rng.standard_normal((24, 4))
    mixed = rng.permutation(24)
    labels = clustering.balanced(points[mixed], 4)
    assert len({(a, b) for a, b in zip(labels, planted[mixed], strict=True)}) == 4

    def squares(labels):
        centres = np.stack([noise[labels == g].mean(axis=0) for g in range(4)])
        return np.sum((noise - centres[labels]) ** 2)

    noise = rng.standard_normal((24, 3))
    found = [clustering.balanced(noise, 4, iterations=n) for n in (1, 2, 4, 8)]
    errors = [squares(labels) for labels in found]
    assert all(np.all(np.bincount(labels) == 6) for labels in found)
    assert errors == sorted(errors, reverse=True)


def test_neurons_that_fire_together_are_grouped():
    rng = np.random.default_rng(0)
    planted = rng.permutation(np.repeat(np.arange(3), 5))
    on = rng.integers(0, 3, 200)
    active = (on[:, None] == planted[None]) * rng.uniform(0.5, 1, (200, 15))
    labels = clustering.balanced(clustering.coactivation(active, 3), 3)
    assert len(set(zip(labels, planted, strict=True))) == 3


def test_a_trained_router_catches_more_than_centres():
    rng = np.random.default_rng(0)
    w, labels = rng.standard_normal((12, 16)), np.repeat(np.arange(4), 4)
    x = rng.standard_normal((600, 12)).astype(np.float32)
    groups = np.maximum(x @ w, 0) @ np.float32(labels[:, None] == np.arange(4)[None])
    points = clustering.directions([w])
    found = routers.mlp(points, labels, x, groups, 40, 0)
    centre = routers.centre(points, labels, 12)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = {
        "mlp": np.tanh(unit @ found["inner"]) @ found["kernel"],
        "centre": unit @ centre["kernel"] + centre["bias"],
        "truth": groups,
    }
    caught = {n: groups[np.arange(600), s.argmax(axis=1)].mean() for n, s in scores.items()}
    assert caught["centre"] < caught["mlp"] <= caught["truth"]


@pytest.mark.parametrize("name", marks.slow_but({"T5"}, ("gated", "T5")))
def test_learned_from_texts_saved_and_compressed(name, tmp_path):
    dense = model_of(name)
    batch = {"input_ids": IDS}
    if name == "T5":
        mask = np.ones_like(IDS)
        mask[0, 4:] = 0
        batch |= {"attention_mask": mask, "decoder_input_ids": IDS[:, :5]}
    given = {"calibration": [batch], "clusters": "coactivation", "epochs": 2}
    split = mj.moefy(dense, experts=4, share=0.5, **given)
    mj.save(split, tmp_path / "split")
    np.testing.assert_array_equal(outputs(mj.load(tmp_path / "split")), outputs(split))
    read = dict(inputs.of_blocks(dense, [batch]))
    assert list(read) == dense.config.feed_forwards()
    rows = {n: len(r) for n, r in read.items()}
    assert set(rows.values()) == ({72} if name == "gated" else {67, 40})
    if name == "gated":
        small, _ = mj.compress(
            split, [mj.Rule(".*/feed_forward/.*")], budget=0.8, calibration=IDS, method="experts"
        )
        whole = moefication.with_share(small, 1.0)
        assert whole.shapes == small.shapes
        assert whole.config.experts_of(BLOCK).k == 4


def test_flops_fall_with_the_share(split, gated):
    blocks, total = moefication.flops_per_token(gated)
    assert blocks == 2 * 2 * 3 * 16 * 24
    assert total == blocks + 2 * (2 * (16 * 24 * 2 + 16 * 12 * 2) + 16 * 50)
    half, _ = moefication.flops_per_token(split)
    assert half == blocks // 2 + 2 * 2 * 16 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 5}, "experts=5 does not divide the 24 neurons of a block; take one of 2, 3"),
        ({"experts": 4}, "router='mlp' with clusters='weights' learns from texts"),
        (
            {"experts": 4, "share": 0.0},
            "share=0.0 must be a finite number of at most 1 and above 0",
        ),
        ({"experts": 4, "router": "best"}, "router='best' must be one of 'mlp', 'centre', 'truth'"),
    ],
)
def test_arguments_that_do_not_fit(gated, options, message):
    with pytest.raises(ValueError, match=message):
        mj.moefy(gated, **options)


def test_models_that_cannot_be_split(gated, split):
    with pytest.raises(ValueError, match="matrices in MPO form, adapters or experts"):
        mj.moefy(split, experts=4, router="centre")
    with pytest.raises(ValueError, match="was not split by moefy"):
        moefication.with_share(gated, 0.5)
