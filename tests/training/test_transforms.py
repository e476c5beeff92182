"""LAMB and Muon against plain formulas, and layers that are stacked against separate ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import models, mpo, training
from mpojax.mpo import decomposition
from mpojax.training import state as state_lib
from tests.training import small_decoder

pytestmark = pytest.mark.usefixtures("as_users_compile")

LAYERS, EXPERTS = 3, 2
# Path inside a layer: (shape, role).
INSIDE = {
    "attention/query/kernel": ((4, 6), "other"),
    "attention/query/bias": ((6,), "other"),
    "feed_forward/up/cores/0": ((1, 2, 3, 4), "auxiliary"),
    "feed_forward/up/cores/1": ((4, 2, 2, 1), "central"),
}
# Inside an expert; its slices are `layers/<i>/feed_forward/expert_<e>/<path>` when apart.
OF_EXPERTS = {
    "down/kernel": ((4, 2), "other"),
    "down/bias": ((2,), "other"),
    "gate/cores/0": ((1, 2, 2, 3), "auxiliary"),
    "gate/cores/1": ((3, 2, 2, 1), "central"),
}
OUTSIDE = {"embeddings/word/table": ((7, 4), "other"), "pooler/kernel": ((4, 4), "other")}


def random_values(seed, scale=1.0):
    """Values per layer: {path: array}, with `layers/<i>/` in front of what is in a layer."""
    rng = np.random.default_rng(seed)
    shapes = {f"layers/{i}/{p}": s for i in range(LAYERS) for p, (s, _) in INSIDE.items()}
    shapes |= {
        f"layers/{i}/feed_forward/expert_{e}/{p}": s
        for i in range(LAYERS)
        for e in range(EXPERTS)
        for p, (s, _) in OF_EXPERTS.items()
    }
    shapes |= {path: shape for path, (shape, _) in OUTSIDE.items()}

    def size(path):
        """Layers and experts differ: one ratio for several would be wrong for each."""
        layer = int(path.split("/")[1]) if "layers" in path else 0
        return scale * (1 + layer) * (3 if "expert_1" in path else 1)

    return {
        path: size(path) * rng.standard_normal(shape).astype(np.float32)
        for path, shape in shapes.items()
    }


def stacked(values):
    """The same with layers 0 and 1 in one stack and layer 2 in another."""
    made = {path: value for path, value in values.items() if not path.startswith("layers/")}
    for stack, layers in enumerate([(0, 1), (2,)]):
        for path in INSIDE:
            parts = [values[f"layers/{layer}/{path}"] for layer in layers]
            made[f"stacks/{stack}/{path}"] = np.stack(parts)
        for path in OF_EXPERTS:
            of_layers = [
                np.stack(
                    [values[f"layers/{i}/feed_forward/expert_{e}/{path}"] for e in range(EXPERTS)]
                )
                for i in layers
            ]
            made[f"stacks/{stack}/feed_forward/experts/{path}"] = np.stack(of_layers)
    return made


def unstacked(values):
    made = {path: value for path, value in values.items() if not path.startswith("stacks/")}
    for stack, layers in enumerate([(0, 1), (2,)]):
        for place, layer in enumerate(layers):
            for path in INSIDE:
                made[f"layers/{layer}/{path}"] = values[f"stacks/{stack}/{path}"][place]
            for path in OF_EXPERTS:
                both = values[f"stacks/{stack}/feed_forward/experts/{path}"][place]
                for expert in range(EXPERTS):
                    made[f"layers/{layer}/feed_forward/expert_{expert}/{path}"] = both[expert]
    return made


def roles_of(values):
    known = INSIDE | OUTSIDE | OF_EXPERTS
    return {path: next(r for p, (_, r) in known.items() if path.endswith(p)) for path in values}


def updates(config, layout=lambda values: values, steps=3):
    """The updates of several steps, {path: array} each."""
    values = layout(random_values(0))
    optimizer = training.make_optimizer(
        {"learning_rate": 0.1, "schedule": "constant", "clip_norm": 0.0} | config,
        roles_of(values),
        10,
    )
    update = jax.jit(optimizer.update)
    params = state_lib.nest(values)
    held, made = optimizer.init(params), []
    for step in range(steps):
        gradients = state_lib.nest(layout(random_values(1 + step, 0.1)))
        change, held = update(gradients, held, params)
        made.append({path: np.asarray(x) for path, x in state_lib.flatten(change).items()})
    return made


@pytest.mark.parametrize(
    "config",
    [
        {"name": "adamw", "weight_decay": 0.1},
        {"name": "adafactor"},
        {
            "name": "lamb",
            "weight_decay": 0.1,
            "trust_bounds": (0.3, 1.5),
            "bias_correction": False,
        },
        {"name": "muon", "weight_decay": 0.1, "muon_roles": ("other", "central", "auxiliary")},
    ],
    ids=str,
)
def test_stacked_layers_are_updated_like_separate_ones(config):
    for one, other in zip(updates(config), updates(config, stacked), strict=True):
        other = unstacked(other)
        assert set(one) == set(other)
        for path in one:
            np.testing.assert_allclose(one[path], other[path], rtol=2e-5, atol=1e-7, err_msg=path)


def test_stack_axes_are_those_of_the_encoder():
    config = models.EncoderConfig(
        vocab_size=11, hidden_size=8, num_layers=3, num_heads=2, intermediate_size=12, num_labels=2
    )
    model = training.state.nnx.eval_shape(
        lambda: models.build(config, {}, rngs=training.state.nnx.Rngs(0))
    )
    for path, variable, layers in models.variables(model):
        name = state_lib.join(path)
        assert state_lib.stack_axes(name) == (0 if layers is None else 1), name
        if layers is not None:
            assert variable.shape[0] in (1, len(layers))


class TestLamb:
    def reference(self, bias_correction, bounds, decay=0.1, excluded=None):
        """You et al. (ICLR 2020), algorithm 2, one parameter after the other, in float64."""
        values, mu, nu, made = random_values(0), {}, {}, []
        for step in range(3):
            gradients, change = random_values(1 + step, 0.1), {}
            for path, x in values.items():
                x, g = x.astype(np.float64), gradients[path].astype(np.float64)
                mu[path] = 0.9 * mu.get(path, 0.0) + 0.1 * g
                nu[path] = 0.999 * nu.get(path, 0.0) + 0.001 * g**2
                m, v = mu[path], nu[path]
                if bias_correction:
                    m, v = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                u = m / (np.sqrt(v) + 1e-8)
                u = u + (0.0 if path.endswith("bias") else decay) * x
                ratio = np.linalg.norm(x) / np.linalg.norm(u)
                if bounds:
                    ratio = np.clip(ratio, *bounds)
                if excluded and path.endswith(excluded):
                    ratio = 1.0
                change[path] = -0.1 * ratio * u
            made.append(change)
        return made

    @pytest.mark.parametrize("bias_correction", [True, False])
    @pytest.mark.parametrize("bounds", [(), (0.01, 0.3), (0.9, 1.4)])
    def test_reference(self, bias_correction, bounds):
        config = {
            "name": "lamb",
            "weight_decay": 0.1,
            "bias_correction": bias_correction,
            "trust_bounds": bounds,
        }
        expected = self.reference(bias_correction, bounds)
        for ours, theirs in zip(updates(config), expected, strict=True):
            for path in theirs:
                np.testing.assert_allclose(
                    ours[path], theirs[path], rtol=1e-4, atol=1e-5, err_msg=path
                )

    def test_paths_without_ratio(self):
        config = {"name": "lamb", "weight_decay": 0.1, "no_trust_ratio": (".*/bias",)}
        for ours, theirs in zip(
            updates(config), self.reference(True, (), excluded="bias"), strict=True
        ):
            for path in theirs:
                np.testing.assert_allclose(
                    ours[path], theirs[path], rtol=1e-4, atol=1e-5, err_msg=path
                )

    def test_nothing_to_compare_with_gives_a_ratio_of_one(self):
        """A zero slice, such as a fresh adapter's, moves; others of its stack keep their ratio."""
        params = {"stacks": {"0": {"up": np.stack([np.zeros(3), np.full(3, 2.0)])}}}
        params = jax.tree.map(lambda x: x.astype(np.float32), params)
        gradient = jax.tree.map(np.ones_like, params)
        config = {"name": "lamb", "learning_rate": 1.0, "schedule": "constant", "clip_norm": 0.0}
        optimizer = training.make_optimizer(config, {"stacks/0/up": "other"}, 5)
        change, _ = optimizer.update(gradient, optimizer.init(params), params)
        np.testing.assert_allclose(change["stacks"]["0"]["up"][:, 0], [-1.0, -2.0], rtol=1e-5)

    def test_total_movement_of_the_released_recipe(self):
        """Spec: off its floor a tensor moves by at most the sum of rates, 1.45% in 10k steps."""
        recipe = {
            "name": "lamb",
            "learning_rate": 1.76e-6,
            "schedule": "linear",
            "warmup_steps": 0.025,
            "bias_correction": False,
            "trust_bounds": (0.01, 0.3),
        }
        optimizer = training.make_optimizer(recipe, {"a": "other"}, 125_000)
        rates = np.array([float(optimizer.schedule(s)) for s in range(0, 10_000, 50)])
        assert 50 * rates.sum() == pytest.approx(0.0145, rel=0.02)


class TestMuon:
    def test_update_of_a_kernel_is_nearly_orthogonal_in_each_layer(self):
        change = updates({"name": "muon"}, stacked, steps=1)[0]["stacks/0/attention/query/kernel"]
        assert change.shape == (2, 4, 6)
        singular = np.linalg.svd(change, compute_uv=False) / (0.1 * 0.2 * np.sqrt(6))
        assert np.all((singular > 0.5) & (singular < 1.4))
        # The whole stack as one matrix would have had its own singular values near one.
        assert np.linalg.svd(change.reshape(8, 6), compute_uv=False).max() > 0.1 * 0.2 * 3

    @pytest.mark.parametrize(
        ("roles", "by_adam"),
        [
            (("other",), {"bias", "table", "cores/0", "cores/1"}),
            (("other", "central"), {"bias", "table", "cores/0"}),
            (("auxiliary",), {"bias", "table", "cores/1", "kernel"}),
        ],
    )
    def test_roles_that_it_takes(self, roles, by_adam):
        adam, muon = updates({"name": "adamw"}), updates({"name": "muon", "muon_roles": roles})
        for path in muon[-1]:
            same = np.allclose(adam[-1][path], muon[-1][path])
            assert same == any(path.endswith(end) for end in by_adam), path

    def test_no_moments_of_adam_for_its_matrices(self):
        values = random_values(0)
        optimizer = training.make_optimizer({"name": "muon"}, roles_of(values), 10)
        names = state_lib.flatten(optimizer.init(state_lib.nest(values)))
        of_kernel = [name for name in names if name.endswith("layers/0/attention/query/kernel")]
        of_core = [name for name in names if name.endswith("layers/0/feed_forward/up/cores/1")]
        assert (len(of_kernel), len(of_core)) == (1, 2)

    def test_nothing_to_take(self):
        with pytest.raises(ValueError, match=r"muon finds no matrix .*use adamw"):
            updates({"name": "muon", "muon_roles": ("adapter",)})
        with pytest.raises(ValueError, match=r"muon_roles=\('cores',\) must be a list, each"):
            updates({"name": "muon", "muon_roles": ("cores",)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"trust_bounds": (0.3,)}, r"trust_bounds=\(0.3,\) must be \(least, largest\)"),
        ({"trust_bounds": (0.3, 0.1)}, "0 <= least <= largest"),
        ({"beta1": 1.0}, r"beta1=1.0 must be a finite number of at least 0 and below 1"),
        ({"no_trust_ratio": ("bia",)}, "no_trust_ratio pattern 'bia' matches no parameter path"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ValueError, match=message):
        updates({"name": "lamb"} | config)


def test_muon_sees_a_central_core_between_identities_as_its_matrix():
    """The same step as on the dense matrix that the chain stands for, also for stacked blocks."""
    shape = mpo.MPOShape((2, 2, 4, 2, 2), (2, 2, 8, 2, 2))
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((3, 64, 128)).astype(np.float32)
    cores = np.stack([decomposition.identity_cores(w, shape)[2] for w in matrices])
    np.testing.assert_array_equal(mpo.central_to_matrix(cores, shape), matrices)
    np.testing.assert_array_equal(mpo.matrix_to_central(matrices, shape), cores)
    core_path, dense_path = "stacks/0/attention/query/cores/2", "stacks/0/attention/query/kernel"

    def step(path, array, role, chains):
        settings = {"name": "muon", "learning_rate": 0.1, "muon_roles": ("other", "central")}
        optimizer = training.make_optimizer(settings, {path: role}, 10, chains)
        params = state_lib.nest({path: jnp.asarray(array)})
        change, _ = optimizer.update(params, optimizer.init(params), params)
        return np.asarray(state_lib.flatten(change)[path])

    dense = step(dense_path, matrices, "other", None)
    central = step(core_path, cores, "central", {core_path: shape})
    np.testing.assert_allclose(mpo.central_to_matrix(central, shape), dense, rtol=1e-4, atol=1e-6)
    # Without its shape the core counts as another matrix.
    assert not np.allclose(step(core_path, cores, "central", None), central, atol=1e-4)


def test_cut_central_cores_are_no_matrices():
    shape = mpo.MPOShape.balanced(32, 64, n=5).with_bonds(3)
    assert not mpo.is_matrix_between_identities(shape)
    with pytest.raises(ValueError, match="has cut bonds"):
        mpo.central_to_matrix(np.zeros(shape.core_shapes[2]), shape)


def test_experts_have_an_axis_of_their_own():
    axes = {
        "stacks/0/feed_forward/up/kernel": 1,
        "stacks/0/feed_forward/experts/up/kernel": 2,
        "towers/decoder/stacks/3/feed_forward/experts/up/cores/0": 2,
        "stacks/0/feed_forward/shared/up/cores/2": 1,
        "stacks/0/feed_forward/router/kernel": 1,
        "feed_forward/experts/up/kernel": 1,
        "experts/up/kernel": 1,
        "myexperts/up/kernel": 0,
        "stacks/0/experts": 1,  # no folder
        "embeddings/word/table": 0,
    }
    assert {path: state_lib.stack_axes(path) for path in axes} == axes
    assert state_lib.layer_axes("stacks/0/feed_forward/experts/up/kernel") == 1
    assert state_lib.layer_axes("feed_forward/experts/up/kernel") == 0


def test_stack_axes_are_those_of_a_decoder_with_experts():
    model = small_decoder.abstract_model()
    experts = small_decoder.EXPERTS
    found = set()
    for path, leaf in state_lib.flatten_variables(model).items():
        lead = leaf.shape[: state_lib.stack_axes(path)]
        assert lead == (2, experts)[: len(lead)], path
        found.add(len(lead))
        if path.endswith("cores/1"):
            assert leaf.ndim - len(lead) == 4, path
    assert found == {0, 1, 2}
