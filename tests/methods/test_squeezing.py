"""Dimension squeezing: cuts, moments, revert, budget, exact resume."""

import dataclasses
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from mpojax import compression, models, mpo, training
from mpojax.methods import mpop
from mpojax.methods.mpop import squeezing
from mpojax.methods.mpop.settings import SqueezingSettings
from tests.methods import squeezing_run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def squeezed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squeezed")
    return folder, squeezing_run.run(folder)


def strip(phases):
    """Records without the compile count, which a resumed process has fewer of."""
    return [{k: v for k, v in phase.items() if k != "compilations"} for phase in phases]


def test_every_phase_cuts_and_is_recorded(squeezed):
    folder, result = squeezed
    assert [phase["phase"] for phase in result.phases] == [0, 1, 2, 3]
    assert result.why == "3 phases are done"
    sizes = [phase["parameters"] for phase in result.phases]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
    for before, after in zip(result.phases[:-1], result.phases[1:], strict=True):
        saved = sum(cut["saved"] for cut in after["cuts"])
        assert before["parameters"] - after["parameters"] == saved
        for group, bonds in after["bonds"].items():
            assert all(a <= b for a, b in zip(bonds, before["bonds"][group], strict=True))
    assert json.loads((folder / "squeeze.json").read_text())["phases"] == result.phases


def test_shapes_counts_and_optimizer_agree_after_the_cuts(squeezed):
    _, result = squeezed
    model = result.state.model()
    assert sum(models.count_parameters(model).values()) == result.phases[-1]["parameters"]
    for path, shape in model.shapes.items():
        for k, core in enumerate(shape.core_shapes):
            assert models.to_arrays(model)[f"{path}/cores/{k}"].shape == core
    adam = next(s for s in result.state.optimizer if isinstance(s, optax.ScaleByAdamState))
    for moment in (adam.mu, adam.nu):
        assert jax.tree.map(np.shape, moment) == jax.tree.map(np.shape, result.state.trainable)
    assert int(adam.count) == int(result.state.step) == 4 + 3 * 3


def test_one_compilation_for_each_rung(squeezed):
    _, result = squeezed
    assert [phase["compilations"] for phase in result.phases] == [1, 1, 1, 1]


def test_a_finished_run_is_only_read(squeezed):
    folder, result = squeezed

    def train(*arguments):
        raise AssertionError("nothing is left to train")

    again = squeezing_run.run(folder, train=train)
    assert again.phases == result.phases
    same = jax.tree.map(np.array_equal, again.state.trainable, result.state.trainable)
    assert all(jax.tree.leaves(same))


@pytest.mark.slow
def test_a_cut_costs_at_most_its_estimate_and_everything_moves_after_it(tmp_path):
    """Exactly the estimate where one bond is cut; and training goes on with every core."""
    seen = []
    inner = squeezing_run.train_with()

    def train(state, optimizer, steps, folder, description):
        before = {k: np.array(v) for k, v in models.to_arrays(state.model()).items()}
        result = inner(state, optimizer, steps, folder, description)
        seen.append((before, models.to_arrays(result.state.model())))
        return result

    result = squeezing_run.run(tmp_path, train=train, per_bond=True, group_by="matrix")
    shapes = squeezing_run.model().shapes
    for phase, (_, tuned), (cut, moved) in zip(result.phases[1:], seen[:-1], seen[1:], strict=True):
        (choice,) = phase["cuts"]
        path = choice["group"]
        old = mpo.to_matrix([np.float64(tuned[f"{path}/cores/{k}"]) for k in range(5)], None)
        new = mpo.to_matrix([np.float64(cut[f"{path}/cores/{k}"]) for k in range(5)], None)
        squared = np.sum((old - new) ** 2) / np.sum(old**2)
        assert squared == pytest.approx(choice["cost"], rel=1e-4, abs=1e-10)
        for other in shapes:
            centre = shapes[other].central
            for k in range(5):
                name = f"{other}/cores/{k}"
                assert np.array_equal(cut[name], moved[name]) == (k == centre)


@pytest.mark.slow
def test_momentum_follows_the_gauge(tmp_path):
    """The matrix and what momentum says about every core are those from before."""
    chains = squeezing_run.model()
    accept = mpop.trainable_filter("lightweight")
    optimizer = squeezing_run.make_optimizer(chains, "sgd")
    state = training.TrainState.create(chains, accept, optimizer)
    train = squeezing_run.train_with()
    state = train(state, optimizer, 4, tmp_path / "a", "").state
    run = squeezing.Squeezing(
        model=chains,
        settings=SqueezingSettings(),
        trainable="lightweight",
        make_optimizer=lambda model: squeezing_run.make_optimizer(model, "sgd"),
        train=train,
        metric=squeezing_run.METRIC,
        first_steps=4,
        folder=tmp_path,
    )
    run.pending = {"shapes": run.shapes}  # a cut to the bonds that are there
    turned, _ = run.cut(state)
    before, after = (models.to_arrays(s.model()) for s in (state, turned))
    path = "layers/0/attention/query"
    assert not np.allclose(before[f"{path}/cores/0"], after[f"{path}/cores/0"], atol=1e-3)
    matrices = [
        mpo.to_matrix([a[f"{path}/cores/{k}"] for k in range(5)], None) for a in (before, after)
    ]
    np.testing.assert_allclose(*matrices, atol=1e-5)
    # The product of a core and its momentum has no gauge (Euler identity of each core).
    products = [products_with_momentum(each, path) for each in (state, turned)]
    assert min(map(abs, products[0])) > 0
    np.testing.assert_allclose(*products, rtol=1e-3)


def products_with_momentum(state, path):
    """<core, momentum> of the auxiliary cores of a matrix of layer 0."""
    trace = next(s for s in state.optimizer if isinstance(s, optax.TraceState)).trace
    inner = path.removeprefix("layers/0/").split("/")
    arrays, momentum = models.to_arrays(state.model()), trace["encoder"]["stacks"]["0"]
    for part in (*inner, "cores"):
        momentum = momentum[part]
    return [
        float(np.sum(np.float64(arrays[f"{path}/cores/{k}"]) * np.asarray(momentum[k][0])))
        for k in ("0", "1", "3", "4")
    ]


def test_a_drop_is_taken_back(tmp_path):
    """Phase 2 is made to fail: the state of phase 1 comes back."""
    inner, seen = scripted(iter([0.8, 0.8, 0.5])), []

    def train(*arguments):
        result = inner(*arguments)
        seen.append(models.to_arrays(result.state.model()))
        return result

    result = squeezing_run.run(tmp_path, train=train, max_metric_drop=0.1)
    back = models.to_arrays(result.state.model())
    assert all(np.array_equal(back[name], array) for name, array in seen[1].items())
    assert [phase["accepted"] for phase in result.phases] == [True, True, False]
    assert "fell by more than 0.1" in result.why
    total = sum(models.count_parameters(result.state.model()).values())
    assert total == result.phases[1]["parameters"]
    assert int(result.state.step) == result.phases[1]["step"]


@pytest.mark.slow
def test_a_gain_is_no_reason_to_stop(tmp_path):
    metrics = iter([0.5, 0.9, 0.9, 0.45])
    result = squeezing_run.run(tmp_path, train=scripted(metrics), max_metric_drop=0.1)
    assert [phase["accepted"] for phase in result.phases] == [True] * 4


@pytest.mark.slow
def test_an_excluded_group_is_left_alone(tmp_path):
    metrics = iter([0.8, 0.5, 0.8, 0.8])
    result = squeezing_run.run(
        tmp_path, train=scripted(metrics), max_metric_drop=0.1, on_drop="exclude"
    )
    assert [phase["accepted"] for phase in result.phases] == [True, False, True, True]
    excluded = {cut["group"] for cut in result.phases[1]["cuts"]}
    for phase in result.phases[2:]:
        assert not excluded & {cut["group"] for cut in phase["cuts"]}


def scripted(metrics):
    """No training at all: the metric is given."""

    def train(state, optimizer, steps, folder, description):
        return training.FitResult(
            state=dataclasses.replace(state, step=np.int32(steps)),
            stopped=None,
            stop_requested=None,
            metrics={squeezing_run.METRIC: next(metrics)},
            steps_run=1,
            steps_per_second=None,
            compile_seconds=0.0,
            train_seconds=0.0,
            traces=0,
        )

    return train


def test_squeezes_to_a_budget_in_few_phases(tmp_path):
    train = scripted(itertools.repeat(0.5))
    result = squeezing_run.run(tmp_path, train=train, budget=0.95, cuts_per_phase=100, max_phases=9)
    assert result.why == "the budget is met"
    assert len(result.phases) == 2
    limit = SqueezingSettings(budget=0.95).parameter_budget(squeezing_run.model())
    assert result.phases[-1]["parameters"] <= limit < result.phases[0]["parameters"]


def test_goes_to_a_budget_in_equal_shares(tmp_path):
    train = scripted(itertools.repeat(0.5))
    result = squeezing_run.run(
        tmp_path,
        train=train,
        budget=0.95,
        cuts_per_phase=0,
        max_phases=3,
        factor=1.0,
        per_bond=True,
    )
    sizes = [phase["parameters"] for phase in result.phases]
    assert (len(sizes), result.why) == (4, "the budget is met")
    drops = -np.diff(sizes)
    assert max(drops) - min(drops) < 0.5 * np.mean(drops)


@pytest.mark.slow
def test_a_coarse_ladder_still_reaches_the_budget(tmp_path):
    """One cut may overshoot the share of the next phase, which then cuts all the same."""
    train = scripted(itertools.repeat(0.5))
    result = squeezing_run.run(
        tmp_path, train=train, budget=0.8, cuts_per_phase=0, max_phases=12, multiple=8, factor=0.5
    )
    assert result.why == "the budget is met"


def test_a_metric_that_is_not_finite_before_the_first_cut_is_refused(tmp_path):
    with pytest.raises(ValueError, match="before the first cut"):
        squeezing_run.run(tmp_path, train=scripted(iter([float("nan")])))


def test_ends_where_nothing_is_left_to_cut(tmp_path):
    train = scripted(itertools.repeat(0.5))
    result = squeezing_run.run(tmp_path, train=train, multiple=64, cuts_per_phase=100, max_phases=9)
    assert result.why == "nothing is left to cut"
    assert set(map(max, result.phases[-1]["bonds"].values())) == {1}


@pytest.mark.slow
def test_muon_needs_a_reset(tmp_path):
    with pytest.raises(ValueError, match="cannot follow a cut; use adam, adamw"):
        squeezing_run.run(tmp_path / "kept", optimizer="muon", max_phases=1)
    result = squeezing_run.run(
        tmp_path / "reset", optimizer="muon", optimizer_state="reset", max_phases=1
    )
    assert result.phases[-1]["cuts"]


def test_reset_starts_moments_anew_and_keeps_the_schedule(tmp_path):
    result = squeezing_run.run(tmp_path, optimizer_state="reset", max_phases=1)
    adam = next(s for s in result.state.optimizer if isinstance(s, optax.ScaleByAdamState))
    schedule = next(s for s in result.state.optimizer if isinstance(s, optax.ScaleByScheduleState))
    assert (int(adam.count), int(schedule.count)) == (3, 7)


def launch(folder, pause=0.0):
    script = ROOT / "tests" / "methods" / "squeezing_run.py"
    command = [sys.executable, str(script), str(folder), str(pause)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_middle_it_takes_the_same_way(tmp_path, kill):
    finish(launch(tmp_path / "straight"))
    process = launch(tmp_path / "killed", pause=0.2)
    for line in process.stdout:
        if line.startswith("step 9"):  # in the middle of the second phase with a cut
            process.send_signal(kill)
            break
    process.wait(timeout=60)
    process.stdout.close()
    assert "ended" in finish(launch(tmp_path / "killed"))
    phases = [
        json.loads((tmp_path / name / "squeeze.json").read_text())["phases"]
        for name in ("straight", "killed")
    ]
    assert strip(phases[0]) == strip(phases[1])
    finals = [np.load(tmp_path / name / "final.npz") for name in ("straight", "killed")]
    assert finals[0].files == finals[1].files
    for name in finals[0].files:
        np.testing.assert_array_equal(finals[0][name], finals[1][name])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "squeeze.steps=0"),
        ({"max_metric_drop": -0.1}, "squeeze.max_metric_drop"),
        ({"budget": 0.0}, "squeeze.budget"),
        ({"budget": 1.5}, "squeeze.budget=1.5"),
        ({"max_metric_drop": "0.1"}, "squeeze.max_metric_drop='0.1'"),
        ({"matrices": "("}, "must be a regular expression"),
        ({"measure": "best"}, "squeeze.measure='best'"),
        ({"on_drop": "cry"}, "squeeze.on_drop"),
        ({"multiple": 0}, "multiple=0"),
        ({"cuts_per_phase": 0}, "give one"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SqueezingSettings(**fields)


def test_bonds_below_the_minimum_are_not_counted_as_cut_to_it():
    chains = squeezing_run.model()
    small = compression.compress(compression.merge(chains), squeezing_run.RULES, bond=2)[0]
    size = sum(models.count_parameters(small).values())
    SqueezingSettings(minimum=4, budget=size).check(small)
    with pytest.raises(ValueError, match=f"still has {size:,}"):
        SqueezingSettings(minimum=4, budget=size - 1).check(small)


def test_a_budget_below_the_smallest_model_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="still has"):
        squeezing_run.run(tmp_path / "run", budget=0.01)
    with pytest.raises(ValueError, match="matches no matrix"):
        squeezing_run.run(tmp_path / "run", matrices="head")
    assert not (tmp_path / "run").exists()
