"""Over-parameterised fine-tuning from end to end, on a checkpoint of toy size."""

import pytest

from configs.mpop import base as finetune_base
from configs.opf import base, minilm
from experiments import train
from mpojax import io, models
from tests.experiments.test_distill import common
from tests.experiments.toy import result_of


@pytest.fixture
def config(checkpoint, texts):
    config = common(base.get_config(), checkpoint, texts)
    config.pooling = "mean"
    config.opf.update(
        {
            "num_per_role": 2,
            "num_per_round": 1,
            "interval": 2.0,
            "num_inner_cores": 1,
            "score_batches": 1,
        }
    )
    return config


def check_result(folder, chosen):
    result = result_of(folder)
    saved = io.load_pretrained(folder / "model")
    assert not saved.shapes
    total = sum(models.count_parameters(saved).values())
    assert result["inference_parameters"] == result["total"] == total
    assert result["train_parameters"] > total
    assert result["metrics"] == result["unmerged_metrics"]
    assert [entry["step"] for entry in result["chosen"]] == chosen
    assert all(len(entry["matrices"]) >= 6 for entry in result["chosen"])
    assert "became chains" in (folder / "summary.txt").read_text()


# Static selection goes the same way; the rounds themselves: tests/methods/test_opf.py.
@pytest.mark.slow
def test_dynamic_selection(config, tmp_path):
    config.save_model = True
    assert train.run(config, tmp_path) == 0
    check_result(tmp_path, [2, 4])


def test_static_selection(config, checkpoint, texts, tmp_path):
    tuned = common(finetune_base.get_config(), checkpoint, texts)
    tuned.pooling, tuned.save_model = "mean", True
    assert train.run(tuned, tmp_path / "tuned") == 0
    config.opf.strategy, config.save_model = "static", True
    config.scoring_checkpoint = str(tmp_path / "tuned/model")
    assert train.run(config, tmp_path / "run") == 0
    check_result(tmp_path / "run", [0])


def test_a_scoring_model_in_mpo_form(config, checkpoint, texts, tmp_path):
    tuned = common(finetune_base.get_config(), checkpoint, texts)
    tuned.pooling, tuned.save_model, tuned.matrices = "mean", True, (".*/query",)
    tuned.steps = 0  # what it has learnt does not matter
    assert train.run(tuned, tmp_path / "tuned") == 0
    config.opf.strategy, config.scoring_checkpoint = "static", str(tmp_path / "tuned/model")
    with pytest.raises(ValueError, match="fine-tuned on the task and dense"):
        train.run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scoring_checkpoint": "folder"}, "'dynamic' reads none"),
        ({"opf.strategy": "static"}, "'static' needs the folder of a fine-tuned model"),
        ({"opf.interval": 3.0}, "choose 2 matrices of each role by step 6 of 6"),
        ({"keep_best": True}, "config.keep_best=True: the whole dense model is trained"),
        ({"matrices": (".*/query",), "bond": 2}, "config.matrices=.*: the whole dense model"),
        ({"optimizer.name": "muon"}, "cannot follow a matrix that becomes a chain"),
        ({"optimizer.weight_decay": 0.01}, "have none when training begins"),
    ],
)
def test_bad_configs(config, tmp_path, fields, message):
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_configs_load():
    for variant in ("static", "dynamic"):
        for task in minilm.TASKS:
            config = minilm.get_config(f"{variant},{task}")
            config.scoring_checkpoint = "folder" if variant == "static" else ""
            train.check(config)
    with pytest.raises(ValueError, match="the argument is VARIANT,TASK"):
        minilm.get_config("greedy,sst2")
