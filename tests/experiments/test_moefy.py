"""The command that splits feed-forward blocks into experts."""

import dataclasses
import json

import pytest

import mpojax as mj
from experiments import moefy
from tests.experiments.test_decoders import model  # noqa: F401


def moefying(model, **changes):  # noqa: F811
    texts = str(model.parent / "text.txt")
    given = {"model": str(model), "texts": texts, "test": texts, "experts": 4, "epochs": 1}
    sizes = {"windows": 4, "test_windows": 2, "length": 12}
    return moefy.Moefying(**given | sizes | changes)


@pytest.mark.slow
def test_quality_by_share_and_size_and_a_stop(model, tmp_path, capsys, monkeypatch):  # noqa: F811
    settings = moefying(model, shares="0.5,1.0", budgets="0.8")
    found = moefy.run(settings, str(tmp_path / "run"))
    rows = found["rows"]
    names = ["dense", "truth", "mlp", "truth", "mlp", "experts by experts, 80 %"]
    assert [row["router"] for row in rows] == [*names, "experts by whitened, 80 %"]
    dense, half, learned, whole, all_on, shared, own = rows
    assert whole["perplexity"] == pytest.approx(dense["perplexity"], rel=1e-4)
    assert all_on["perplexity"] == pytest.approx(dense["perplexity"], rel=1e-4)
    assert half["block_flops"] == 0.5 < learned["block_flops"] < 1 < all_on["block_flops"]
    assert shared["parameters"] < all_on["parameters"]
    assert own["parameters"] < all_on["parameters"]
    split = mj.load(tmp_path / "run" / "models" / "mlp")
    assert split.config.experts_of("layers/0/feed_forward").number == 4
    first = capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "result.json").read_text())["rows"] == rows
    assert moefy.run(settings, str(tmp_path / "run")) == found
    assert first.endswith(capsys.readouterr().out)
    # Stopped behind the splitting: that is not done again.
    (tmp_path / "run" / "result.json").unlink()
    for name in ("truth_1.0", "experts_80"):
        (tmp_path / "run" / "rows" / f"{name}.json").unlink()
    monkeypatch.delattr(moefy.moefication, "moefy")
    assert moefy.run(settings, str(tmp_path / "run")) == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"routers": "mlp,best"}, "--routers='best' must be one of 'mlp', 'centre'"),
        ({"shares": "0.5,much"}, "--shares='0.5,much' must be numbers with commas between them"),
        ({"budgets": "1.5"}, "--budgets=1.5 must be a finite number of at most 1 and above 0"),
        ({"clusters": "names"}, "--clusters='names' must be one of 'weights', 'coactivation'"),
    ],
)
def test_flags_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        moefy.Moefying(model="x", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/nowhere"}, "there is no folder /nowhere"),
        ({"experts": 7}, "experts=7 does not divide the [0-9]+ neurons of a block"),
    ],
)
def test_a_mistyped_command_leaves_nothing_behind(model, tmp_path, changes, message):  # noqa: F811
    with pytest.raises((ValueError, OSError), match=message):
        moefy.run(dataclasses.replace(moefying(model), **changes), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
