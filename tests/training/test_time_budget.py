"""Schedules over seconds, with a clock of the test's own."""

import json

import numpy as np
import pytest

from mpojax import training
from mpojax.training import metrics as metrics_lib
from tests.training import helpers

ROLES = {"a/kernel": "other"}
BY_TIME = {"schedule_unit": "seconds", "budget_seconds": 10.0}


class Clock:
    """Every step takes one second."""

    def __init__(self, per_step=1.0):
        self.now, self.per_step = 1000.0, per_step

    def __call__(self):
        return self.now

    def hook(self):
        def tick(loop):
            self.now += self.per_step

        call = training.Call(tick)
        call.order = -200  # before the budget looks
        return call


def run(folder=None, *, clock=None, steps=1000, hooks=(), seconds=10.0, **config):
    clock = clock or Clock()
    config = {"learning_rate": 0.5, "warmup_steps": 0.2, "budget_seconds": seconds} | config
    state, optimizer = helpers.start(steps=steps, schedule_unit="seconds", **config)
    budget = training.TimeBudget(seconds, clock)
    if folder is not None:
        hooks = [*hooks, training.Checkpoint(every=2)]
    result = training.fit(
        state,
        helpers.loss_fn,
        helpers.train_data(),
        optimizer=optimizer,
        steps=steps,
        hooks=[clock.hook(), budget, *hooks],
        folder=folder,
        log_every=1,
    )
    return result, budget


class TestSchedule:
    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
            ("linear", [0.0, 0.5, 1.0, 0.55, 0.1, 0.1]),
            ("cosine", [0.0, 0.5, 1.0, 0.55, 0.1, 0.1]),
        ],
    )
    def test_follows_the_share(self, schedule, expected):
        config = BY_TIME | {"schedule": schedule, "warmup_steps": 0.2, "end_factor": 0.1}
        optimizer = training.make_optimizer(config | {"learning_rate": 2.0}, ROLES, 10)
        rates = [float(optimizer.schedule(share)) for share in (0.0, 0.1, 0.2, 0.6, 1.0, 1.5)]
        np.testing.assert_allclose(rates, 2 * np.array(expected), rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"schedule_unit": "hours"}, r"unknown schedule_unit 'hours'; allowed are"),
            ({"schedule_unit": "seconds"}, "needs budget_seconds"),
            ({"budget_seconds": 5.0}, "budget_seconds=5.0 has no meaning"),
            (BY_TIME | {"warmup_steps": 3}, r"warmup_steps=3.0 must be below 1"),
        ],
    )
    def test_bad_config(self, config, message):
        with pytest.raises(ValueError, match=message):
            training.make_optimizer(config, ROLES, 10)


class TestRun:
    def test_rate_follows_the_clock_and_the_run_ends_with_the_budget(self, tmp_path):
        evaluate = helpers.dev_hook(every=0)
        result, _ = run(tmp_path, hooks=[evaluate])
        lines = [x for x in metrics_lib.read(tmp_path / "metrics.jsonl") if "loss" in x]
        shares = [line["budget_share"] for line in lines]
        # The step that began when the budget was spent is known as such one step later.
        np.testing.assert_allclose(shares, np.arange(len(shares)) / 10, rtol=1e-5)
        assert (len(lines), result.steps_run) == (12, 12)
        expected = [0.5 * (s / 0.2 if s < 0.2 else max(0.0, (1 - s) / 0.8)) for s in shares]
        np.testing.assert_allclose([x["learning_rate"] for x in lines], expected, atol=1e-6)
        # An end, not an interruption: evaluated, and nothing is left to do.
        assert result.stopped is None
        assert not result.interrupted
        assert evaluate.last_step == 12
        again, _ = run(tmp_path)
        assert again.steps_run == 0

    def test_twice_as_fast_makes_twice_the_steps(self):
        assert run(clock=Clock(0.5))[0].steps_run == pytest.approx(2 * 10, abs=3)

    def test_steps_are_the_most(self):
        result, _ = run(steps=4)
        assert result.steps_run == 4

    def test_elapsed_time_survives_a_resume(self, tmp_path):
        first, _ = run(tmp_path, hooks=[helpers.Stop(at=6)])
        assert first.stopped == "test"
        second, budget = run(tmp_path)
        assert second.steps_run == 12 - 6
        assert budget.elapsed == pytest.approx(12.0)
        lines = [x for x in metrics_lib.read(tmp_path / "metrics.jsonl") if "loss" in x]
        shares = [line["budget_share"] for line in lines]
        np.testing.assert_allclose(shares, np.arange(12) / 10, rtol=1e-5)

    def test_fit_brings_the_clock_itself(self):
        state, optimizer = helpers.start(
            schedule_unit="seconds", budget_seconds=0.2, warmup_steps=0
        )
        result = training.fit(
            state, helpers.loss_fn, helpers.train_data(), optimizer=optimizer, steps=10**6
        )
        assert 2 <= result.steps_run < 10**6
        assert result.metrics["budget_share"] >= 1.0
        json.dumps(result.summary())
        with pytest.raises(ValueError, match=r"seconds=0 must be above 0"):
            training.TimeBudget(0)
