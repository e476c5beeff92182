"""Models of one base combined: routed low-rank experts, and merges of no extra size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mpojax as mj
from mpojax import io, models, nn
from mpojax.methods import smile
from mpojax.methods.smile import merging
from tools.benchmarks import shared_experts

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}
CONFIG = models.EncoderConfig(vocab_size=31, max_positions=16, pooling="mean", **SIZES)
IDS = np.random.default_rng(0).integers(1, 31, (3, 8))
RANK = 3


@pytest.fixture(scope="module")
def base():
    return models.build(CONFIG, rngs=nnx.Rngs(0))


def changed(base, seed: int, num_labels: int = 2):
    """A fine-tuning whose matrices differ by rank 3, its vectors anyhow; with a head."""
    rng = np.random.default_rng(seed)
    model = models.with_head(base, num_labels, rngs=nnx.Rngs(seed))
    arrays = {name: np.array(array) for name, array in models.to_arrays(model).items()}
    for path in base.config.adaptable():
        rows, columns = arrays[f"{path}/kernel"].shape
        update = rng.standard_normal((rows, RANK)) @ rng.standard_normal((RANK, columns))
        arrays[f"{path}/kernel"] += np.float32(0.02 * update)
        arrays[f"{path}/bias"] += np.float32(0.1 * rng.standard_normal(columns))
    arrays["embeddings/norm/scale"] *= np.float32(1.1)
    return models.from_arrays(model.config, {}, arrays)


@pytest.fixture(scope="module")
def tuned(base):
    return {"one": changed(base, 1), "two": changed(base, 2, num_labels=3)}


def test_one_fine_tuning_of_the_planted_rank_comes_back(base, tuned):
    one = {"one": tuned["one"]}
    alone = mj.combine(base, one, rank=RANK, rest="mean")
    model = smile.with_head_of(alone, tuned["one"])
    np.testing.assert_allclose(model(IDS), tuned["one"](IDS), atol=2e-5)
    lower = smile.with_head_of(mj.combine(base, one, rank=1, rest="mean"), tuned["one"])
    assert np.max(np.abs(lower(IDS) - tuned["one"](IDS))) > 1e-3
    added = sum(models.count_parameters(alone).values()) - sum(
        models.count_parameters(base).values()
    )
    settings = nn.AdapterSettings(kind="routed", rank=RANK, experts=1, gate_rank=4)
    sizes = base.config.matrix_sizes()
    assert added == sum(settings.num_params(*sizes[path]) for path in base.config.adaptable())


def routed(x, arrays, experts: int, top_k: int):
    """Token by token and expert by expert, float64."""
    gates = np.split(arrays["gate"], experts, axis=1)
    downs, ups = np.split(arrays["down"], experts, axis=1), np.split(arrays["up"], experts)
    rows = []
    for row in np.float64(x):
        p = np.exp([np.linalg.norm(row @ gate) for gate in gates])
        p /= p.sum()
        chosen = np.argsort(-p)[:top_k]
        total = p[chosen].sum()
        each = (p[e] / total * (row @ downs[e] @ ups[e] + arrays["bias"][e]) for e in chosen)
        rows.append(sum(each))
    return np.stack(rows)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_routing_against_a_loop_over_tokens_and_experts(top_k):
    rng = np.random.default_rng(top_k)
    settings = nn.AdapterSettings(kind="routed", rank=2, experts=3, top_k=top_k, gate_rank=2)
    adapter = nn.make_adapter(settings, 6, 5, rngs=nnx.Rngs(0))
    arrays = {}
    for name, variable in nnx.to_flat_state(nnx.state(adapter, nn.AdapterParam)):
        arrays[name[0]] = rng.standard_normal(variable.shape)
        variable[...] = jnp.asarray(arrays[name[0]], jnp.float32)
        setattr(adapter, name[0], variable)
    x = np.float32(rng.standard_normal((40, 6)))
    np.testing.assert_allclose(adapter(x), routed(x, arrays, 3, top_k), rtol=2e-5, atol=2e-5)
    weights = np.asarray(adapter.weights(x))
    assert np.all(np.sum(weights > 0, axis=1) == top_k)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)


def test_an_input_in_the_directions_of_one_expert_goes_there(base, tuned):
    both = mj.combine(base, tuned, rank=RANK, gate_rank=RANK)
    layer = both.layer(1).attention.query
    for index, model in enumerate(tuned.values()):
        name = "layers/1/attention/query/kernel"
        difference = models.to_arrays(model)[name] - models.to_arrays(base)[name]
        x = np.float32(np.linalg.svd(difference)[0][:, :RANK].T)
        assert np.all(np.argmax(layer.adapter.weights(x), axis=1) == index)
        bias = np.asarray(layer.adapter.bias[...])[index]
        np.testing.assert_allclose(np.asarray(layer.adapter(x)) - bias, x @ difference, atol=1e-5)


def test_gradients_are_finite_where_an_expert_changes_nothing():
    settings = nn.AdapterSettings(kind="routed", rank=1, experts=2)
    adapter = nn.make_adapter(settings, 4, 4, rngs=nnx.Rngs(0))
    adapter.gate[...] = jnp.zeros_like(adapter.gate[...])
    found = jax.jit(jax.grad(lambda a: jnp.sum(a(jnp.ones((2, 4))))))(adapter)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(found))


def test_saved_and_loaded_and_run_from_a_task(base, tuned, tmp_path):
    model = smile.with_head_of(mj.combine(base, tuned, rank=2, top_k=2), tuned["two"])
    assert model.config.num_labels == 3
    mj.save(model, tmp_path / "model")
    again = io.load_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(again(IDS), model(IDS))
    with pytest.raises(ValueError, match="is not linear"):
        mj.merge(model)


def test_a_pooler_that_a_fine_tuning_lacks_is_left_behind(base, tuned):
    """Of a base with a pooler, tuned on the mean of the tokens."""
    pooled = models.with_head(base, 2, pooling="pooler", rngs=nnx.Rngs(7))
    arrays = {n: a for n, a in models.to_arrays(pooled).items() if not n.startswith("head/")}
    changes = {"num_labels": None, "pooling": "pooler"}
    whole = models.from_arrays(dataclasses.replace(pooled.config, **changes), {}, arrays)
    for made, expected in (
        (mj.combine(whole, tuned, rank=RANK), mj.combine(base, tuned, rank=RANK)),
        (smile.merged(whole, tuned), smile.merged(base, tuned)),
    ):
        one, other = (smile.with_head_of(m, tuned["one"])(IDS) for m in (made, expected))
        np.testing.assert_array_equal(one, other)


def test_a_pooler_comes_with_the_head(base):
    models_with = {}
    for seed, factor in ((1, 1.01), (2, 0.98)):
        moved = jax.tree.map(lambda w, f=factor: f * w, base)
        made = models.with_head(moved, 2, pooling="pooler", rngs=nnx.Rngs(seed))
        models_with[str(seed)] = made
    for made in (mj.combine(base, models_with, rank=2), smile.merged(base, models_with)):
        model = smile.with_head_of(made, models_with["2"])
        arrays, theirs = (models.to_arrays(m) for m in (model, models_with["2"]))
        for name in ("head/kernel", "pooler/kernel"):
            np.testing.assert_array_equal(arrays[name], theirs[name])
        assert np.all(np.isfinite(model(IDS)))


def test_merges_against_their_formulas(base, tuned):
    name = "layers/0/feed_forward/up/kernel"
    w, *others = (models.to_arrays(model)[name] for model in (base, *tuned.values()))
    one, two = (np.float64(other) - w for other in others)

    def found(method, **options):
        return models.to_arrays(smile.merged(base, tuned, method, **options))[name]

    np.testing.assert_allclose(found("mean"), (others[0] + others[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(
        found("task_arithmetic", scale=0.3), w + 0.3 * (one + two), atol=1e-6
    )
    # All entries count: the larger one's sign wins, and those of that sign are averaged.
    same, larger = one * two > 0, np.where(np.abs(one) > np.abs(two), one, two)
    expected = w + np.where(same, (one + two) / 2, larger)
    np.testing.assert_allclose(found("ties", density=1.0), expected, atol=1e-6)
    moved = found("ties", density=0.05) != w
    assert 0 < moved.mean() < 0.5


def test_ties_of_the_papers_steps():
    changes = np.array([[4.0, -3.0, 0.5, 2.0], [2.0, 1.0, -0.4, -5.0], [-1.0, 2.5, 0.3, 0.2]])
    limits = np.array([2.0, 2.0, 1.0])
    # Trimmed: (4, -3, 0, 2), (2, 0, 0, -5), (-1, 2.5, 0, 0); signs of sums: +, -, 0, -.
    np.testing.assert_allclose(merging._agreeing_mean(changes, limits), [3.0, -3.0, 0.0, -5.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda b, t: ((b, []), {}), "there is no model to combine"),
        (
            lambda b, t: ((b, t), {"top_k": 3}),
            "top_k=3 must be an integer from 1 to 2",
        ),
        (lambda b, t: ((b, t), {"rank": 17}), "rank at .*=17 must be"),
        (lambda b, t: ((b, t), {"rest": "all"}), "rest='all' must be one of"),
        (lambda b, t: ((b, [b]), {}), r"models\[0\] equals the base"),
        (lambda b, t: ((b, {"x": models.build(CONFIG, rngs=nnx.Rngs(9))}), {}), "another base"),
        (
            lambda b, t: (
                (models.build(dataclasses.replace(CONFIG, num_layers=3), rngs=nnx.Rngs(0)), t),
                {},
            ),
            "one is no fine-tuning of the base: layers/2",
        ),
        (
            lambda b, t: ((mj.combine(b, t, rank=1), t), {}),
            "adapters; differences are those of dense",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(base, tuned, arguments, message):
    given, options = arguments(base, tuned)
    with pytest.raises(ValueError, match=message):
        mj.combine(*given, **{"rank": 2, **options})


def test_changes_with_one_planted_central_core_come_back():
    rng = np.random.default_rng(0)
    left, core, right = (rng.standard_normal(s) for s in ((3, 4, 2), (2, 24, 2), (3, 2, 4)))
    tensors = np.einsum("kar,rbs,ksc->kabc", left, core, right)
    changes = np.stack([shared_experts._as_matrix(t, 2, (16, 24)) for t in tensors])
    np.testing.assert_array_equal(shared_experts._as_tensor(changes[1], 2), tensors[1])
    made = shared_experts.shared_central(changes, 2, 2)
    np.testing.assert_allclose(made, changes, atol=2e-3)
    found = dict(shared_experts.approximations(changes, 3))
    error = {name: np.sum((each - changes) ** 2) for name, each in found.items()}
    assert error["shared central"] < 1e-3 * error["private SVD"]
    shared = rng.standard_normal((16, 2)) @ rng.standard_normal((3, 2, 24))
    np.testing.assert_allclose(shared_experts.shared_inputs(shared, 2), shared, atol=1e-9)
