"""Optimizers, each alone."""

import jax
import numpy as np
import optax
import pytest

from mpojax import training
from mpojax.training import optimizer as optimizer_lib
from mpojax.training import state as state_lib

ROLES = {"a/kernel": "other", "a/bias": "other", "norm/scale": "other", "core": "auxiliary"}


def params(value=1.0):
    return state_lib.nest({path: np.full(3, value, np.float32) for path in ROLES})


def updates_of(steps=1, gradient=0.5, **config):
    """The last of `steps` updates with one constant gradient."""
    optimizer = training.make_optimizer({"clip_norm": 0.0} | config, ROLES, total_steps=10)
    held = optimizer.init(params())
    for _ in range(steps):
        update, held = optimizer.update(params(gradient), held, params())
    return {path: float(leaf[0]) for path, leaf in state_lib.flatten(update).items()}


class TestOptimizer:
    @pytest.mark.parametrize(
        ("name", "oracle"),
        [
            ("adamw", optax.adamw(0.1, 0.8, 0.95, 1e-6, weight_decay=0.0)),
            ("adam", optax.adam(0.1, 0.8, 0.95, 1e-6)),
            ("sgd", optax.sgd(0.1, 0.8)),
            ("lamb", optax.lamb(0.1, 0.8, 0.95, 1e-6)),
            ("adafactor", optax.adafactor(0.1)),
        ],
    )
    def test_equals_optax(self, name, oracle):
        ours = updates_of(
            3,
            name=name,
            learning_rate=0.1,
            beta1=0.8,
            beta2=0.95,
            epsilon=1e-6,
            schedule="constant",
        )
        with jax.numpy_dtype_promotion("standard"):
            held = oracle.init(params())
            for _ in range(3):
                expected, held = oracle.update(params(0.5), held, params())
        for path, leaf in state_lib.flatten(expected).items():
            assert ours[path] == pytest.approx(float(leaf[0]), rel=1e-5), path

    def test_decay_spares_biases_and_norms(self):
        update = updates_of(learning_rate=0.1, weight_decay=0.5, schedule="constant", gradient=0.0)
        assert update["a/kernel"] == pytest.approx(-0.1 * 0.5)
        assert update["core"] == pytest.approx(-0.1 * 0.5)
        assert update["a/bias"] == update["norm/scale"] == 0.0

    def test_own_decay_patterns(self):
        update = updates_of(
            learning_rate=0.1,
            weight_decay=0.5,
            gradient=0.0,
            no_decay=("core",),
            schedule="constant",
        )
        assert update["core"] == 0.0
        assert update["a/bias"] != 0.0
        with pytest.raises(ValueError, match=r"no_decay pattern 'cor' matches no parameter"):
            updates_of(no_decay=("cor",))

    def test_decay_to_the_start(self):
        config = {"learning_rate": 0.1, "weight_decay": 0.5, "schedule": "constant"}
        optimizer = training.make_optimizer(
            config | {"decay_to_start": ("core",), "no_decay": ("a/bias",)}, ROLES, total_steps=10
        )
        held = optimizer.init(params(2.0))
        update, held = optimizer.update(params(0.0), held, params(2.5))
        found = {path: float(leaf[0]) for path, leaf in state_lib.flatten(update).items()}
        assert found["core"] == pytest.approx(-0.1 * 0.5 * 0.5)
        assert found["a/kernel"] == pytest.approx(-0.1 * 0.5 * 2.5)
        assert found["a/bias"] == 0.0
        assert set(state_lib.flatten(held[-3].start)) == {"core"}
        with pytest.raises(ValueError, match=r"decay_to_start pattern 'cor' matches no parameter"):
            updates_of(decay_to_start=("cor",))

    def test_rate_of_a_role(self):
        update = updates_of(
            name="sgd",
            learning_rate=0.1,
            role_learning_rates={"auxiliary": 0.4},
            beta1=0.0,
            schedule="constant",
        )
        assert update["core"] == pytest.approx(-0.2)
        assert update["a/kernel"] == pytest.approx(-0.05)

    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
            ("linear", [0.5, 1.0, 1.0, 0.875, 0.125]),
            (
                "cosine",
                [0.5, 1.0, 1.0, 0.5 * (1 + np.cos(np.pi / 8)), 0.5 * (1 + np.cos(np.pi * 7 / 8))],
            ),
        ],
    )
    @pytest.mark.parametrize("warmup", [2, 0.2])
    def test_schedules(self, schedule, expected, warmup):
        optimizer = training.make_optimizer(
            {"learning_rate": 2.0, "schedule": schedule, "warmup_steps": warmup}, ROLES, 10
        )
        rates = [float(optimizer.schedule(step)) for step in (0, 1, 2, 3, 9)]
        np.testing.assert_allclose(rates, 2 * np.array(expected), rtol=1e-5)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"lr": 1.0}, "optimizer: unknown 'lr', did you mean 'learning_rate'"),
            ({"name": "adamax"}, "optimizer: name='adamax' must be one of .*'lamb'"),
            ({"schedule": "step"}, "schedule='step' must be one of"),
            ({"name": "adam", "weight_decay": 0.1}, "use adamw"),
            ({"warmup_steps": 11}, "more than the run's 10 steps"),
            ({"learning_rate": -1.0}, "learning_rate=-1.0 must be a finite number of at least 0"),
            (
                {"role_learning_rates": {"auxiliary": -0.1}},
                r"role_learning_rates={'auxiliary': -0.1} must be a mapping .* of at least 0",
            ),
            (
                {"role_learning_rates": {"aux": 1.0}},
                "role_learning_rates: unknown 'aux' .known: ",
            ),
        ],
    )
    def test_bad_config(self, config, message):
        with pytest.raises(ValueError, match=message):
            training.make_optimizer(config, ROLES, 10)

    def test_clipping(self):
        clipped = updates_of(
            name="sgd", beta1=0.0, clip_norm=1e-3, learning_rate=1.0, schedule="constant"
        )
        assert np.sqrt(sum(3 * x**2 for x in clipped.values())) == pytest.approx(1e-3, rel=1e-5)

    def test_defaults_are_what_the_config_says(self):
        assert set(optimizer_lib.default_config()) >= {"name", "learning_rate", "schedule"}
