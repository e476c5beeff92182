"""The command that combines fine-tunings of one base."""

import json

import jax
import pytest
from flax import nnx

import mpojax as mj
from experiments import combine
from mpojax import io, models
from tests.experiments.test_evaluate import TASK, classifier  # noqa: F401
from tests.models import small_language


@pytest.fixture(scope="module")
def folders(classifier):  # noqa: F811
    """(base, two fine-tunings, their task's folder)."""
    first = io.load_pretrained(classifier / "model")
    second = jax.tree.map(lambda w: 1.01 * w, first)
    mj.save(second, classifier / "other", tokenizer_from=classifier / "model")
    return classifier


def combination(folders, **changes):
    changed = io.load_pretrained(folders / "encoder")
    if not (folders / "base").exists():
        mj.save(jax.tree.map(lambda w: 0.99 * w, changed), folders / "base")
    given = {"model": (str(folders / "model"), str(folders / "other")), "task": (TASK, TASK)}
    settings = {"base": str(folders / "base"), "data_dir": str(folders), "max_length": 8}
    return combine.Combination(**settings, **given | {"rank": 16} | changes)


def test_each_method_beside_the_models_and_a_finished_run_is_shown(folders, tmp_path, capsys):
    settings = combination(folders, methods="smile,mean", rank=16, gate_rank=16, rest="mean")
    found = combine.run(settings, str(tmp_path / "run"))
    own, routed, mean = found["rows"]
    assert [own["method"], routed["method"], mean["method"]] == ["own model", "smile", "mean"]
    assert own["parameters"] == 2 * mean["parameters"] < routed["parameters"]
    for row in found["rows"]:
        assert [set(score) for score in row["scores"]] == [{"model", "task", "accuracy", "f1"}] * 2
    saved = mj.load(tmp_path / "run" / "models" / "smile")
    assert len(models.adapter_settings(saved.config)) == len(saved.config.adaptable())
    first = capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "result.json").read_text())["rows"] == found["rows"]
    assert combine.run(settings, str(tmp_path / "run")) == found
    assert capsys.readouterr().out == first


def test_models_without_heads_and_tasks(tmp_path, capsys):
    decoder = models.build(small_language.LLAMA, rngs=nnx.Rngs(0))
    for name, factor in (("whole", 1.0), ("first", 1.01), ("second", 0.98)):
        mj.save(jax.tree.map(lambda w, f=factor: f * w, decoder), tmp_path / name)
    given = {"base": str(tmp_path / "whole"), "methods": "mean"}
    given["model"] = (str(tmp_path / "first"), str(tmp_path / "second"))
    found = combine.run(combine.Combination(**given), str(tmp_path / "run"))
    assert [row["scores"] for row in found["rows"]] == [[], []]
    assert "mean" in capsys.readouterr().out
    mj.load(tmp_path / "run" / "models" / "mean")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "smile,mode"}, "--methods='mode' must be one of"),
        ({"task": (TASK,)}, "--task is given 1 times and --model 2 times"),
        ({"model": ("a", "a")}, "--model names a model twice"),
    ],
)
def test_bad_input(folders, changes, message):
    with pytest.raises(ValueError, match=message):
        combination(folders, **changes)
