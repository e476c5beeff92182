"""Plots of sweeps."""

from experiments import plots


def test_points_are_means_over_seeds_with_deviations():
    rows = [
        {"cell": "", "state": "done", "form": form, "bond": bond, "seed": seed, "y": bond + seed}
        for form in "ab"
        for bond in (4, 2)
        for seed in (0, 2)
    ]
    plot = plots.Plot(x="bond", y="y", lines="form")
    found = plots.points([r for r in rows if r["form"] == "a"], plot, ["form", "bond"])
    assert found == [(2, 3, 2**0.5), (4, 5, 2**0.5)]
    figure = plots.draw(plot, rows, ["form", "bond"])
    (axes,) = figure.axes
    assert len(axes.lines) == len(axes.collections) == 2  # a line and a band for each form
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_one_panel_for_each_value_in_rows_of_three():
    rows = [
        {"cell": "", "state": "done", "task": task, "seed": seed, "x": 3, "y": seed}
        for task in "abcd"
        for seed in (0, 1)
    ]
    figure = plots.draw(plots.Plot(x="x", y="y", panels="task"), rows, ["task"])
    assert [axes.get_title() for axes in figure.axes] == [f"task: {task}" for task in "abcd"]
    assert all(len(axes.containers) == 1 for axes in figure.axes)  # a bar: bands need two points


def test_a_plot_without_numbers_is_reported_and_left_out(tmp_path, caplog):
    rows = [{"cell": "a", "state": "done", "seed": 0, "metric": 0.5, "metrics.f1": 0.25}]
    wanted = [plots.Plot(x="accuracy", y="metric"), plots.Plot(x="seed", y="metrics.f1")]
    plots.draw_all(tmp_path, rows, ["seed"], wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.f1_vs_seed.png"]
    assert "no numbers called accuracy in the results; they have metric, metrics.f1" in caplog.text


def test_nothing_is_drawn_before_the_first_result(tmp_path):
    rows = [{"cell": "a", "state": "open", "seed": 0}]
    plots.draw_all(tmp_path, rows, ["seed"], [plots.Plot(x="seed", y="metric")])
    assert not list(tmp_path.iterdir())
