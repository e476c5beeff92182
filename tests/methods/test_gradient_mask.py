"""The random mask on gradients of central cores."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import training
from mpojax.methods.mpoe import gradient_mask
from mpojax.training import metrics as metrics_lib
from mpojax.training import state as state_lib
from tests import marks
from tests.training import helpers

CENTRAL, AUXILIARY, KERNEL = "stacks/0/up/cores/1", "stacks/0/up/cores/0", "mixer/kernel"
LONE = "pooler/cores/1"  # a central core outside of the stacks
ROLES = {CENTRAL: "central", LONE: "central", AUXILIARY: "auxiliary", KERNEL: "other"}
SHAPES = {CENTRAL: (3, 4, 2, 2, 2), LONE: (2, 2, 2, 2), AUXILIARY: (3, 1, 2, 2, 4), KERNEL: (4, 4)}
NAMES = ("adam", "adamw", "lamb", "sgd")
STEPS, RATE, DECAY = 4, 0.1, 0.1
CASES = list(itertools.product(NAMES, gradient_mask.MODES, gradient_mask.GRANULARITIES))


def tree(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return state_lib.nest(
        {path: jnp.asarray(scale * rng.standard_normal(s), "float32") for path, s in SHAPES.items()}
    )


def gradients(step):
    return tree(1 + step, 0.1)


def flat(values):
    return {path: np.asarray(leaf) for path, leaf in state_lib.flatten(values).items()}


def optimizer(mask=None, seed=0, **config):
    settings = {"learning_rate": RATE, "clip_norm": 0.0, "schedule": "constant"} | config
    if settings.setdefault("name", "adamw") != "adam":
        settings.setdefault("weight_decay", DECAY)
    if mask is not None:
        settings["central_mask"] = mask
    return gradient_mask.make_optimizer(settings, ROLES, 10, seed=seed)


def run(made, steps=STEPS, jit=False):
    """(parameters before every step and after the last, optimizer states, metrics)."""
    update = jax.jit(made.update) if jit else made.update
    params = tree()
    held = made.init(params)
    seen, states, metrics = [flat(params)], [held], []
    for step in range(steps):
        changes, held = update(gradients(step), held, params)
        params = jax.tree.map(jnp.add, params, changes)
        seen.append(flat(params))
        states.append(held)
        metrics.append({name: float(value) for name, value in made.metrics(held).items()})
    return seen, states, metrics


def read(rate=0.5, seed=0, **settings):
    settings = {"mode": "skip", "granularity": "step"} | {"rate": rate} | settings
    return gradient_mask.read(settings, ROLES, seed)


def masks(mask, steps=STEPS):
    """{path: bool of the core's shape} of each step."""
    return [
        {p: np.broadcast_to(np.asarray(m), SHAPES[p]) for p, m in mask.masks(step, tree()).items()}
        for step in range(steps)
    ]


class TestAgainstFormulas:
    def reference(self, name, mode, sampled):
        """Every step for every number on its own, in float64."""
        params = {p: x.astype(np.float64) for p, x in flat(tree()).items()}
        m, v, n = ({p: np.zeros(s) for p, s in SHAPES.items()} for _ in range(3))
        seen = [dict(params)]
        for step in range(STEPS):
            for p, g in flat(gradients(step)).items():
                hidden = sampled[step].get(p, np.zeros(SHAPES[p], bool))
                g = np.where(hidden, 0.0, g.astype(np.float64))
                if name == "sgd":
                    new = 0.9 * m[p] + g, v[p], n[p]
                    u = new[0]
                else:
                    new = 0.9 * m[p] + 0.1 * g, 0.999 * v[p] + 0.001 * g**2, n[p] + 1
                    root = np.sqrt(new[1] / (1 - 0.999 ** new[2]))
                    u = new[0] / (1 - 0.9 ** new[2]) / (root + 1e-8)
                u = u + (0.0 if name == "adam" else DECAY) * params[p]
                if name == "lamb":
                    u = u * self.ratio(p, params[p], u)
                kept = hidden if mode == "skip" else np.zeros_like(hidden)
                params[p] = np.where(kept, params[p], params[p] - RATE * u)
                m[p], v[p], n[p] = (
                    np.where(kept, old, now)
                    for old, now in zip((m[p], v[p], n[p]), new, strict=True)
                )
            seen.append(dict(params))
        return seen

    def ratio(self, path, parameter, update):
        axes = tuple(range(state_lib.stack_axes(path), parameter.ndim))
        norms = [np.sqrt(np.sum(x**2, axis=axes, keepdims=True)) for x in (parameter, update)]
        return norms[0] / np.where(norms[1] == 0.0, norms[0], norms[1])

    @pytest.mark.parametrize(
        ("name", "mode", "draw"),
        # Masks are drawn before an optimizer sees them, modes are around it.
        marks.slow_but(
            {
                (name, mode, draw)
                for name, mode, draw in CASES
                if name == "adamw" or (mode, draw) in {("skip", "tensor"), ("zero_grad", "element")}
            },
            CASES,
        ),
    )
    def test_every_mode_draw_and_optimizer(self, name, mode, draw):
        settings = {"rate": 0.5, "mode": mode, "granularity": draw}
        sampled = masks(read(**settings, seed=4))
        assert sum(m.sum() for each in sampled for m in each.values()) > 0
        seen, _, metrics = run(optimizer(settings, seed=4, name=name))
        for step, expected in enumerate(self.reference(name, mode, sampled)):
            for path, value in expected.items():
                np.testing.assert_allclose(
                    seen[step][path], value, rtol=2e-5, atol=5e-6, err_msg=f"{step} {path}"
                )
        shares = [np.concatenate([m.ravel() for m in each.values()]).mean() for each in sampled]
        np.testing.assert_allclose([x["central_masked"] for x in metrics], shares, rtol=1e-6)
        np.testing.assert_allclose(metrics[-1]["mask_rate"], np.mean(shares), rtol=1e-6)


class TestGoldens:
    """AdamW on one number, gradient 1 where it is not masked; the change of the second step."""

    @staticmethod
    @functools.cache
    def seed(*wanted):
        """A seed with which the first steps are masked as wanted."""
        roles = {"core": "central"}
        for seed in range(64):
            settings = {"mode": "skip", "granularity": "step"} | {"rate": 0.5}
            mask = gradient_mask.read(settings, roles, seed)
            sampled = [mask.masks(s, {"core": jnp.ones(())})["core"] for s in range(len(wanted))]
            if tuple(bool(x) for x in sampled) == wanted:
                return seed
        raise AssertionError(wanted)

    @pytest.mark.parametrize(
        ("mode", "masked", "changes"),
        [
            ("skip", (False, False), (-0.00099999999, -0.00099999999)),
            ("zero_grad", (False, False), (-0.00099999999, -0.00099999999)),
            ("zero_grad", (False, True), (-0.00099999999, -0.00067005824)),
            ("skip", (False, True), (-0.00099999999, 0.0)),
            ("zero_grad", (True, False), (0.0, -0.00074413681)),
            ("skip", (True, False), (0.0, -0.00099999999)),
        ],
    )
    def test_changes(self, mode, masked, changes):
        with jax.enable_x64(True):
            config = {"learning_rate": 1e-3, "schedule": "constant", "clip_norm": 0.0}
            config["central_mask"] = {"rate": 0.5, "mode": mode}
            seed = self.seed(*masked)
            made = gradient_mask.make_optimizer(config, {"core": "central"}, 10, seed=seed)
            params = {"core": jnp.ones((), jnp.float64)}
            held = made.init(params)
            for expected in changes:
                change, held = made.update({"core": jnp.ones((), jnp.float64)}, held, params)
                assert float(change["core"]) == pytest.approx(expected, abs=5e-10)


@pytest.mark.parametrize(
    ("name", "mode", "draw"),
    # A rate of zero is known before modes and random numbers.
    marks.slow_but(
        {
            *(("adamw", mode, "tensor") for mode in gradient_mask.MODES),
            *((name, "skip", "tensor") for name in ("lamb", "muon")),
        },
        [
            *(
                ("adamw", mode, draw)
                for mode in gradient_mask.MODES
                for draw in gradient_mask.GRANULARITIES
            ),
            *((name, "skip", "tensor") for name in ("adam", "lamb", "sgd", "muon")),
        ],
    ),
)
def test_a_rate_of_zero_changes_no_bit(name, mode, draw):
    config = {"name": name, "clip_norm": 0.1, "warmup_steps": 2}
    plain, states, metrics = run(optimizer(**config), jit=True)
    assert metrics[-1] == {}
    made = optimizer({"rate": 0, "mode": mode, "granularity": draw}, **config)
    masked, masked_states, metrics = run(made, jit=True)
    for path in SHAPES:
        np.testing.assert_array_equal(masked[-1][path], plain[-1][path], err_msg=path)
    inner = flat(masked_states[-1].inner)
    for path, leaf in flat(states[-1]).items():
        if path not in inner:  # central cores have counts of their own
            assert path.endswith("count")
            assert all(np.all(inner[p] == leaf) for p in inner if f"{path}/own" in p)
            path = f"{path}/all"
        np.testing.assert_array_equal(inner[path], leaf, err_msg=path)
    assert metrics[-1] == {"central_masked": 0.0, "mask_rate": 0.0}


def test_without_a_rate_nothing_is_stored_anew():
    """A checkpoint of a run without mask has the arrays that it always had."""
    names = [f"0/{moment}/{path}" for moment in ("mu", "nu") for path in sorted(SHAPES)]
    params = tree()
    for mask in (None, {"rate": None}, {"mode": "zero_grad"}):
        held = optimizer(mask).init(params)
        assert set(flat(held)) == {"0/count", *names, "3/count"}
        assert type(held) is tuple


class TestRateOfOne:
    @pytest.mark.parametrize("name", ["adamw", "lamb"])
    def test_skipping_is_freezing(self, name):
        def trained(trainable, rate):
            config = {"name": name, "central_mask": {"rate": rate}, "clip_norm": 0.1}
            state, made = helpers.start(trainable, **config)
            step = training.TrainStep(helpers.loss_fn, made)
            for index in range(3):
                state, metrics = step(state, helpers.train_data()[index])
            return state, metrics

        state, metrics = trained(..., 1.0)
        frozen, _ = trained(helpers.LIGHTWEIGHT, None)
        before = helpers.start(...)[0].trainable["body"]["cores"]["1"]
        np.testing.assert_array_equal(state.trainable["body"]["cores"]["1"], before)
        for path, leaf in flat(frozen.trainable).items():
            np.testing.assert_allclose(
                flat(state.trainable)[path], leaf, rtol=1e-6, atol=1e-7, err_msg=path
            )
        assert (float(metrics["central_masked"]), float(metrics["mask_rate"])) == (1.0, 1.0)

    def test_zero_gradients_are_not_freezing(self):
        """Weight decay goes on."""
        seen, _, _ = run(optimizer({"rate": 1, "mode": "zero_grad"}), steps=2)
        np.testing.assert_allclose(seen[2][CENTRAL], 0.99**2 * seen[0][CENTRAL], rtol=1e-5)

    @pytest.mark.parametrize("mode", gradient_mask.MODES)
    def test_norms_are_clipped_after_masking(self, mode):
        made = optimizer(
            {"rate": 1, "mode": mode}, name="sgd", beta1=0.0, weight_decay=0.0, clip_norm=1e-3
        )
        seen, _, _ = run(made, steps=1)
        moved = {p: seen[1][p] - seen[0][p] for p in SHAPES}
        assert not np.any(moved[CENTRAL])
        norm = np.sqrt(sum(np.sum(x.astype(np.float64) ** 2) for x in moved.values()))
        assert norm == pytest.approx(RATE * 1e-3, rel=2e-3)

    def test_the_schedule_counts_masked_steps(self):
        made = optimizer({"rate": 1}, schedule="linear", warmup_steps=2)
        _, states, _ = run(made, steps=5)
        for step, held in enumerate(states):
            assert float(made.learning_rate(held)) == float(made.schedule(step))
            assert int(held.count) == step
        counts = flat(states[-1].inner[0].count)
        assert int(counts["all"]) == 5
        assert all(int(c) == 0 for name, c in counts.items() if name != "all")


class TestDraws:
    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.875])
    def test_frequency(self, rate):
        count = 10_000
        bound = 4 * np.sqrt(rate * (1 - rate) / count)
        for draw, own in (("step", 1), ("tensor", 3 + 1), ("element", 3 * 32 + 16)):
            mask = read(rate, seed=5, granularity=draw)
            sampled = jax.vmap(lambda s, mask=mask: mask.masks(s, tree()))(jnp.arange(count))
            flags = [np.asarray(x).reshape(count, -1) for x in sampled.values()]
            if draw == "step":
                np.testing.assert_array_equal(flags[0], flags[1])
                flags = flags[:1]
            columns = np.concatenate(flags, axis=1)
            assert columns.shape == (count, own)
            assert abs(columns[:, 0].mean() - rate) < bound
            assert abs(columns.mean() - rate) < bound
            # Each decides for itself, and so does each step.
            correlation = np.corrcoef(columns[:, :4].T) if own > 1 else np.ones((1, 1))
            assert np.abs(correlation - np.eye(len(correlation))).max() < 0.05 or own == 1
            assert abs(np.corrcoef(columns[1:, 0], columns[:-1, 0])[0, 1]) < 0.05

    def test_auxiliaries_are_never_masked(self):
        for mode in gradient_mask.MODES:
            made = optimizer(
                {"rate": 0.5, "mode": mode, "granularity": "element"},
                name="sgd",
                beta1=0.0,
                weight_decay=0.0,
            )
            seen, _, _ = run(made)
            for step in range(STEPS):
                for path, g in flat(gradients(step)).items():
                    moved = seen[step + 1][path] - seen[step][path]
                    kept = np.isclose(moved, -RATE * g, rtol=1e-3, atol=1e-6)
                    if ROLES[path] == "central":
                        assert np.all(kept | (moved == 0.0))
                        assert 0 < np.mean(moved == 0.0) < 1
                    else:
                        assert np.all(kept)

    def test_seeds_draw_otherwise(self):
        one, other = (masks(read(seed=seed, granularity="element")) for seed in (0, 1))
        assert any(np.any(a[CENTRAL] != b[CENTRAL]) for a, b in zip(one, other, strict=True))

    def test_experts_with_cores_of_their_own_are_drawn_one_by_one(self):
        path = "stacks/0/feed_forward/experts/up/cores/1"
        mask = gradient_mask.GradientMask(0.5, "skip", "tensor", 0, frozenset([path]))
        core = state_lib.nest({path: jnp.zeros((3, 4, 2, 2, 2, 2))})
        assert mask.masks(0, core)[path].shape == (3, 4, 1, 1, 1, 1)


def whole_run(folder, *, draw="element", mesh=None, rules=None, hooks=(), steps=6, **more):
    config = {"central_mask": {"rate": 0.4, "granularity": draw}, "name": "adamw"}
    state, made = helpers.start(..., steps=20, **config)
    folder.mkdir(exist_ok=True)
    return training.fit(
        state,
        helpers.loss_without_noise,
        helpers.train_data(),
        optimizer=made,
        steps=steps,
        mesh=mesh or training.make_mesh(),
        rules=rules or training.Rules(),
        hooks=hooks,
        folder=folder,
        log_every=1,
        **more,
    )


def shares(folder):
    lines = metrics_lib.read(folder / "metrics.jsonl")
    return {x["step"]: (x["central_masked"], x["mask_rate"]) for x in lines if "mask_rate" in x}


class TestRuns:
    def test_same_draws_on_one_and_eight_devices_and_after_a_restart(self, tmp_path):
        copy = helpers.CopyFolder(2, tmp_path / "8", tmp_path / "resumed")
        saves = training.Checkpoint(every=2, at_end=False)
        whole = whole_run(tmp_path / "8", hooks=[saves, copy])
        one = training.make_mesh(devices=jax.devices()[:1])
        whole_run(tmp_path / "1", mesh=one)
        split = training.Rules(fsdp_min_size=1)
        mesh = training.make_mesh({"data": 2, "fsdp": 4})
        sharded = whole_run(tmp_path / "fsdp", mesh=mesh, rules=split)
        core = sharded.state.optimizer.inner[1].count["own"]["body"]["cores"]["1"]
        assert not core.sharding.is_fully_replicated
        expected = shares(tmp_path / "8")
        assert len(set(expected.values())) == 6
        assert expected[6][1] == pytest.approx(np.mean([m for m, _ in expected.values()]))
        for name in ("1", "fsdp"):
            assert shares(tmp_path / name) == expected
        np.testing.assert_array_equal(
            core, whole.state.optimizer.inner[1].count["own"]["body"]["cores"]["1"]
        )
        resumed = whole_run(tmp_path / "resumed", hooks=[training.Checkpoint(at_end=False)])
        assert resumed.steps_run == 4
        assert shares(tmp_path / "resumed") == expected
        helpers.assert_same_bits(resumed.state, whole.state)

    def test_one_draw_for_all_micro_batches(self, tmp_path):
        mesh = training.make_mesh(devices=jax.devices()[:2])
        whole, parts = (
            whole_run(tmp_path / str(n), grad_accum_steps=n, mesh=mesh, steps=3) for n in (1, 4)
        )
        assert shares(tmp_path / "1") == shares(tmp_path / "4")
        assert int(parts.state.optimizer.count) == 3
        for path, leaf in flat(whole.state.trainable).items():
            np.testing.assert_allclose(
                flat(parts.state.trainable)[path], leaf, rtol=1e-3, atol=1e-5, err_msg=path
            )


class TestErrors:
    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            ({"rate": 1.5}, "central_mask: rate=1.5 must be a finite number from 0 to 1 or null"),
            ({"rate": -0.1}, "must be a finite number from 0 to 1"),
            ({"rate": "0.5"}, "must be a finite number from 0 to 1"),
            ({"rate": True}, "must be a finite number from 0 to 1"),
            ({"mode": "none"}, "central_mask: mode='none' must be one of 'skip', 'zero_grad'"),
            (
                {"granularity": "core"},
                "granularity='core' must be one of 'step', 'tensor', 'element'",
            ),
            ({"prob": 0.5}, "central_mask: unknown 'prob'"),
        ],
    )
    def test_settings(self, mask, message):
        with pytest.raises(ValueError, match=message):
            optimizer(mask)

    def test_no_central_cores(self):
        settings = {"central_mask": {"rate": 0.5}}
        with pytest.raises(ValueError, match="the model has no central cores; set it to None"):
            gradient_mask.make_optimizer(settings, {"a": "other"}, 10)
        with pytest.raises(ValueError, match="none of the central cores is trained"):
            helpers.start(helpers.LIGHTWEIGHT, **settings)

    def test_muon(self):
        with pytest.raises(ValueError, match='take "central" out of muon_roles'):
            optimizer({"rate": 0.5}, name="muon", muon_roles=("other", "central"))
        seen, _, _ = run(optimizer({"rate": 1}, name="muon"), steps=1)
        np.testing.assert_array_equal(seen[1][CENTRAL], seen[0][CENTRAL])
        assert np.all(seen[1][AUXILIARY] != seen[0][AUXILIARY])

    def test_counts_of_another_shape(self):
        made = optimizer({"rate": 0.5, "granularity": "element"})
        held, smaller = made.init(tree()), jax.tree.map(lambda x: x[:, :1], tree())
        with pytest.raises(ValueError, match="start the optimizer state anew"):
            made.update(smaller, held, smaller)
