"""Training with matrices as sums from end to end, on a checkpoint of toy size."""

import numpy as np
import pytest

from configs.branches import base, minilm
from experiments import train
from mpojax import io, models
from tests.experiments import test_text_to_text, toy_encoder, toy_language
from tests.experiments.toy import result_of

SGD = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.1}


@pytest.fixture
def config(checkpoint, texts):
    config = toy_encoder.config(base.get_config(), checkpoint, texts)
    config.steps, config.checkpoint_every, config.save_model = 6, 3, True
    return config


def model_of(folder):
    return models.to_arrays(io.load_pretrained(folder / "model"))


def test_majority_kernels_leave_a_plain_model_and_resume(config, tmp_path, copied_at):
    with copied_at(3, tmp_path / "whole", tmp_path / "killed"):
        assert train.run(config, tmp_path / "whole") == 0
    assert train.run(config, tmp_path / "killed") == 0
    assert result_of(tmp_path / "killed")["fit"]["steps_run"] == 3
    saved, again = model_of(tmp_path / "whole"), model_of(tmp_path / "killed")
    assert saved.keys() == again.keys()
    assert all((saved[name] == again[name]).all() for name in saved)
    result = result_of(tmp_path / "whole")
    assert result["inference_parameters"] == result["total"]
    matrices = 2 * (4 * 16 * 16 + 2 * 16 * 32)
    assert result["train_parameters"] == result["total"] + 2 * matrices
    assert "left after merging" in (tmp_path / "whole/summary.txt").read_text()


# That they learn the same: tests/methods/test_branches.py.
@pytest.mark.slow
def test_gradients_and_branches_leave_the_same_model(config, tmp_path):
    config.update_from_flattened_dict(SGD)
    config.optimizer.clip_norm = 0.0
    for form in ("branches", "gradients"):
        config.branches.form = form
        assert train.run(config, tmp_path / form) == 0
    one, other = model_of(tmp_path / "branches"), model_of(tmp_path / "gradients")
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=2e-6, err_msg=name)
    wide, narrow = (result_of(tmp_path / form) for form in ("branches", "gradients"))
    assert wide["train_parameters"] > narrow["train_parameters"] == wide["inference_parameters"]


def test_a_search_reports_scales(config, tmp_path):
    config.update_from_flattened_dict(SGD | {"branches.form": "search"})
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    assert len(result["scales"]) == 2
    assert result["scales"] != [1.0, 1.0]
    assert "scales found: " in (tmp_path / "summary.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [models.LanguageModel, models.EncoderDecoder])
def test_language_models_end_as_plain_ones(kind, tmp_path):
    if kind is models.LanguageModel:
        config = toy_language.config(toy_language.write(tmp_path), steps=2)
    else:
        config = test_text_to_text.config_of(test_text_to_text.write_texts(tmp_path), steps=2)
    config.method, config.save_model = "branches", True
    config.branches = dict(base.get_config().branches, matrices=".*/(query|up)")
    assert train.run(config, tmp_path / "run") == 0
    assert isinstance(io.load_pretrained(tmp_path / "run/model"), kind)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"branches.form": "gradients", "optimizer.name": "lamb"}, "name='lamb' must be one of"),
        (
            {"branches.form": "gradients", "optimizer.weight_decay": 0.1},
            "config.optimizer.weight_decay=0.1: steps of Adam are multiplied",
        ),
        ({"keep_best": True}, "config.keep_best=True: the whole dense model"),
        ({"branches.matrices": "layers/0/.*"}, "is in the same stack: name all or none"),
        ({"method": "tuning"}, "config.branches=.* has no meaning with config.method='tuning'"),
    ],
)
def test_bad_configs(config, tmp_path, fields, message):
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_configs_load():
    for variant in minilm.VARIANTS:
        train.check(minilm.get_config(f"{variant},mrpc"))
    with pytest.raises(ValueError, match="the argument is VARIANT,TASK"):
        minilm.get_config("majority_4,sst2")
