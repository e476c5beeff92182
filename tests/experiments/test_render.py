"""Means over repetitions, and figures of them."""

import statistics

import numpy as np
import pytest

from experiments import sweep
from experiments.render import figures, frames, methods
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
            "metric_name": "loss",
            "metric": shots + 10.0 * draw + seed,
        }
        for shots in (10, 20)
        for draw in (0, 1, 2)
        for seed in (0, 1)
    ]


def finished():
    return frames.of(row for row in rows() if row["state"] == "done")


def test_deviations_over_draws_of_means_over_seeds():
    few, more = frames.means(finished(), AXES, ("draw", "seed")).to_dict("records")
    assert (few["shots"], few["n"], few["metric_name"]) == (10, 3, "loss")
    assert few["metric"] == pytest.approx(20.5)
    assert few["metric_std"] == pytest.approx(statistics.stdev([10.5, 20.5, 30.5]))
    assert (more["shots"], more["n"]) == (20, 3)  # an unfinished cell is left out of its mean
    assert more["metric"] == pytest.approx((20.5 + 30.0 + 40.5) / 3)


def test_over_seeds_by_default():
    means = frames.means(finished(), AXES)
    entries = means.to_dict("records")
    assert [(e["shots"], e["draw"], e["n"]) for e in entries[:2]] == [(10, 0, 2), (10, 1, 2)]
    assert entries[0]["metric_std"] == pytest.approx(statistics.stdev([10, 11]))
    assert "Means over seeds ± sample standard deviation." in frames.summary(means, AXES)


def test_numbers_that_some_runs_lack_have_no_mean():
    made = [{"a": "x", "seed": s, "f1": 0.5 if s else None, "loss": float(s)} for s in (0, 1)]
    (entry,) = frames.means(frames.of(made), ["a", "seed"]).to_dict("records")
    assert "f1" not in entry
    assert entry["loss"] == 0.5


def test_deviations_and_pairs():
    kd, svd = (
        frames.of({"seed": seed, "metric": metric} for seed, metric in found)
        for found in (((0, 0.5), (1, 0.75)), ((1, 0.5), (2, 0.25)))
    )
    assert frames.spread(100 * kd.metric, expected=2) == "62.5 ± 17.7"
    assert frames.spread(100 * kd.metric, expected=3) == "62.5 ± 17.7 (2)"
    assert frames.paired(kd, svd, "metric") == [0.25]
    assert frames.difference([25.0], expected=2) == "+25.0 (1)"
    assert frames.spread([]) == ""


def panel_of(plot, means):
    return figures.draw(plot, means).axes


def test_lines_have_one_point_for_all_repetitions():
    means = frames.means(finished(), AXES, ("draw", "seed"))
    (axes,) = panel_of(figures.Plot(x="shots", y="metric"), means)
    line, _, bars = axes.containers[0]
    np.testing.assert_allclose(line.get_xydata(), [[10, 20.5], [20, (20.5 + 30 + 40.5) / 3]])
    low, high = bars[0].get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(10.5), pytest.approx(30.5))


def test_points_are_means_over_seeds_a_dense_model_is_a_horizontal_line():
    made = [
        {"form": form, "bond": bond, "seed": seed, "y": 2.0 * bond + seed}
        for form in ("mpo", "low_rank")
        for bond in (4, 2)
        for seed in (0, 2)
    ]
    made += [{"form": "dense", "bond": None, "seed": seed, "y": 9.0 + seed} for seed in (0, 2)]
    means = frames.means(frames.of(made), ["form", "bond", "seed"])
    assert "| mpo | 4 | 2 |" in frames.summary(means, ["form", "bond", "seed"])
    figure = figures.draw(figures.Plot(x="bond", y="y", lines="form"), means)
    (axes,) = figure.axes
    lines = [bars[0].get_xydata().tolist() for bars in axes.containers if bars[0]]
    assert lines == [[[2, 5], [4, 9]]] * 2
    (across,) = [line for line in axes.lines if list(line.get_xdata()) == [0, 1]]
    assert list(across.get_ydata()) == [10.0, 10.0]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(names) == ["MPO", "dense", "low rank (SVD)"]


def test_one_panel_for_each_value_and_percent():
    made = [
        {"task": task, "seed": seed, "x": 3, "metric_name": "f1", "metric": seed / 2}
        for task in "abcd"
        for seed in (0, 1)
    ]
    means = frames.means(frames.of(made), ["task", "seed"])
    axes = panel_of(figures.Plot(x="x", y="metric", panels="task"), means)
    assert [panel.get_title() for panel in axes] == list("abcd")
    assert axes[0].get_ylabel() == "F1, %"
    assert axes[0].containers[0][0].get_ydata() == [25.0]


def test_dots_beside_each_other_name_their_sizes():
    made = [
        {"variant": name, "seed": seed, "total": 2e6, "metric_name": "accuracy", "metric": 0.5}
        for name in ("dense", "lora_4", "mine_2")
        for seed in (0, 1)
    ]
    means = frames.means(frames.of(made), ["variant", "seed"])
    plot = figures.Plot(y="metric", lines="variant", kind="dots", size="total")
    (axes,) = panel_of(plot, means)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["dense (2M)", "low rank (LoRA), 4 (2M)", "mine 2 (2M)"]
    assert axes.get_xlabel() == "accuracy, %"


def test_a_method_has_one_look():
    assert methods.look("lora_4").style == methods.look("lora").style
    assert methods.look("MPOE, n 4", 3).color == methods.look("MPOE").color == "red"
    assert methods.look("unknown", 0).style != methods.look("unknown", 1).style


def test_a_plot_without_numbers_is_reported_and_left_out(tmp_path, caplog):
    means = frames.of([{"n": 1, "seed": 0, "metric": 0.5, "metrics.f1": 0.25}])
    wanted = [figures.Plot(x="accuracy", y="metric"), figures.Plot(x="seed", y="metrics.f1")]
    figures.draw_all(tmp_path, means, wanted)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["metrics.f1_vs_seed.pdf", "metrics.f1_vs_seed.png"]
    message = "no numbers called accuracy in the results; they have metric, metrics.f1, seed"
    assert message in caplog.text


def test_nothing_is_drawn_before_the_first_result(tmp_path):
    open_cells = [{"cell": "a", "state": "open", "seed": 0}]
    sweep.write_tables(tmp_path, open_cells, ["seed"], plots=[figures.Plot(x="seed", y="metric")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "summary.md"]


@pytest.mark.parametrize(
    ("repeats", "message"),
    [
        (("draw",), r"config.repeats: unknown 'draw' \(known: .*variant"),
        ((), r"config.repeats=\(\) must be a tuple of axes"),
        (("seed", "seed"), "each named once"),
        ("seed", "config.repeats='seed'"),
    ],
)
def test_bad_repeats(tmp_path, monkeypatch, repeats, message):
    toy.install(monkeypatch)
    config = toy.toy_config()
    config.repeats = repeats
    with pytest.raises(ValueError, match=message):
        sweep.main(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_axis_that_repeats_makes_no_lines(tmp_path, monkeypatch):
    toy.install(monkeypatch)
    config = toy.toy_config()
    config.repeats = ("variant", "seed")
    config.plots = ({"x": "total", "y": "metric", "lines": "variant"},)
    with pytest.raises(ValueError, match=r"lines='variant' must be one of '', 'optimizer.learn"):
        sweep.main(config, str(tmp_path / "run"))
