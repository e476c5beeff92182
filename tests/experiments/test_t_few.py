"""Runs that choose among texts, of decoders and encoder-decoders of toy size."""

import pytest

from configs.t_few import base, prompts
from experiments import train
from mpojax import io, models
from tests import marks
from tests.experiments import toy_language
from tests.experiments.test_text_to_text import MOOD, PAIR, write_texts
from tests.experiments.toy import result_of

KINDS = {"decoder": dict(toy_language.DECODER), "encoder_decoder": dict(PAIR)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


def make(folder, kind, **fields):
    config = base.get_config()
    config.task, config.data_dir, config.tokenizer = MOOD, str(folder), str(folder / "words")
    config.model_config = KINDS[kind]
    config.choices.names = ("bad", "good one")
    config.steps, config.checkpoint_every, config.log_every = 4, 0, 1
    config.optimizer.warmup_steps, config.eval_batch_size = 0.0, 8
    return toy_language.put(config, fields)


# Losses of encoder-decoders: tests/methods/test_t_few.py; a run of one: below.
@pytest.mark.parametrize("kind", marks.slow_but({"decoder"}, KINDS))
def test_everything_trained_learns_and_a_killed_run_resumes(folder, kind, tmp_path, copied_at):
    fields = {"trainable": "all", "adapters": (), "save_model": True, "steps": 20}
    fields |= {"checkpoint_every": 10, "optimizer__learning_rate": 0.05}
    config = make(folder, kind, **fields)
    with copied_at(10, tmp_path / "whole", tmp_path / "killed"):
        assert train.run(config, tmp_path / "whole") == 0
    assert train.run(config, tmp_path / "killed") == 0
    assert result_of(tmp_path / "killed")["fit"]["steps_run"] == 10
    saved, again = (
        models.to_arrays(io.load_pretrained(tmp_path / name / "model"))
        for name in ("whole", "killed")
    )
    assert all((saved[name] == again[name]).all() for name in saved)
    result = result_of(tmp_path / "whole")
    assert result["metric_name"] == "accuracy"
    assert result["metric"] == 1.0
    logged = toy_language.logged(tmp_path / "whole", "unlikelihood_loss")
    assert logged[20] < logged[1]
    assert "accuracy 1.0000 on 8 examples" in (tmp_path / "whole/summary.txt").read_text()


def test_only_the_vectors_are_trained(folder, tmp_path):
    config = make(folder, "encoder_decoder")
    assert train.run(config, tmp_path) == 0
    # Keys and values of three attentions, the input of two maps down, each of 32.
    assert result_of(tmp_path)["trained"] == (3 * 2 + 2) * 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices__names": ("one",)}, "config.choices.names=.* must be 2 different texts"),
        ({"choices__template": "none"}, "config.choices.template='none' must be a text with"),
        ({"max_length": 2}, "max_length=2 is too short for the longest of the choices"),
    ],
)
def test_bad_configs(folder, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        train.run(make(folder, "decoder", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_configs_load():
    for name in ("t0_3b,rte", "t0,mrpc", "smollm2,cola"):
        train.check(prompts.get_config(name))
    with pytest.raises(ValueError, match="the argument is MODEL,TASK"):
        prompts.get_config("t5,rte")
