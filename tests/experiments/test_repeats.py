"""Summaries of sweeps that repeat a measurement over more than seeds."""

import statistics

import pytest

from experiments import plots, sweep, sweep_files
from tests.experiments import toy

AXES = ["shots", "draw", "seed"]


def rows():
    return [
        {
            "cell": f"{shots},{draw},{seed}",
            "state": "done" if (shots, draw, seed) != (20, 1, 1) else "open",
            "shots": shots,
            "draw": draw,
            "seed": seed,
            "metric_name": "accuracy",
            "metric": shots + 10.0 * draw + seed,
        }
        for shots in (10, 20)
        for draw in (0, 1, 2)
        for seed in (0, 1)
    ]


def test_deviations_over_draws_of_means_over_seeds():
    few, more = sweep_files.summary(rows(), AXES, ("draw", "seed"))
    assert (few["shots"], few["n"], few["metric"]) == (10, 3, 20.5)
    assert few["metric_std"] == pytest.approx(statistics.stdev([10.5, 20.5, 30.5]))
    assert (more["shots"], more["n"]) == (20, 3)  # an unfinished cell is left out of its mean
    assert more["metric"] == pytest.approx((20.5 + 30.0 + 40.5) / 3)


def test_over_seeds_by_default():
    entries = sweep_files.summary(rows(), AXES)
    assert [(e["shots"], e["draw"], e["n"]) for e in entries[:2]] == [(10, 0, 2), (10, 1, 2)]
    assert entries[0]["metric_std"] == pytest.approx(statistics.stdev([10, 11]))
    page = sweep_files.markdown(rows(), entries, AXES)
    assert "Means over seeds ± sample standard deviation." in page


def test_plots_have_one_point_for_all_repetitions(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_draw_line", lambda axes, data, *rest: drawn.append(data))
    plot = plots.Plot(x="shots", y="metric")
    plots.draw_all(tmp_path, rows(), AXES, [plot], ("draw", "seed"))
    ((few, more),) = drawn
    assert few == (10.0, 20.5, pytest.approx(10.0))
    assert more[1] == pytest.approx((20.5 + 30.0 + 40.5) / 3)


@pytest.mark.parametrize(
    ("repeats", "message"),
    [
        (("draw",), r"config.repeats has \['draw'\]; the axes are \['variant'"),
        ((), r"config.repeats=\(\) must be a tuple of axes"),
        (("seed", "seed"), "each named once"),
        ("seed", "config.repeats='seed'"),
    ],
)
def test_bad_repeats(tmp_path, monkeypatch, repeats, message):
    monkeypatch.setitem(sweep.RUNNERS, "toy", "tests.experiments.toy:toy_run")
    config = toy.toy_config()
    config.repeats = repeats
    with pytest.raises(ValueError, match=message):
        sweep.main(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_axis_that_repeats_makes_no_lines(tmp_path, monkeypatch):
    monkeypatch.setitem(sweep.RUNNERS, "toy", "tests.experiments.toy:toy_run")
    config = toy.toy_config()
    config.repeats = ("variant", "seed")
    config.plots = ({"x": "total", "y": "metric", "lines": "variant"},)
    with pytest.raises(ValueError, match=r"must be one of the axes \['optimizer.learning_rate'\]"):
        sweep.main(config, str(tmp_path / "run"))
