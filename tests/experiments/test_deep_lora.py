"""Deep low-rank updates from end to end, on a checkpoint of toy size."""

import pytest

from configs.deep_lora import base, minilm
from configs.sweeps import deep_lora_minilm
from experiments import cells, train
from mpojax import io, models
from tests.experiments import toy_encoder
from tests.experiments.toy import result_of


@pytest.fixture
def config(checkpoint, texts):
    config = toy_encoder.config(base.get_config(), checkpoint, texts)
    config.steps, config.checkpoint_every, config.save_model = 6, 3, True
    config.deep_lora.rank = 4
    return config


def test_the_result_is_a_model_with_low_ranks_and_a_killed_run_resumes(config, tmp_path, copied_at):
    with copied_at(3, tmp_path / "whole", tmp_path / "killed"):
        assert train.run(config, tmp_path / "whole") == 0
    assert train.run(config, tmp_path / "killed") == 0
    assert result_of(tmp_path / "killed")["fit"]["steps_run"] == 3
    result = result_of(tmp_path / "whole")
    saved, again = (
        models.to_arrays(io.load_pretrained(tmp_path / name / "model"))
        for name in ("whole", "killed")
    )
    assert saved.keys() == again.keys()
    assert all((saved[name] == again[name]).all() for name in saved)
    assert set(result["ranks"]) == {f"layers/{i}/attention/{m}" for i in (0, 1) for m in _PAIR}
    model = io.load_pretrained(tmp_path / "whole/model")
    found = {p: s.rank for p, s in models.adapter_settings(model.config).items()}
    assert found == result["ranks"]
    assert result["train_parameters"] == 4 * (2 * 16 * 4 + 4 * 4)
    assert "updates of rank 4 found ranks" in (tmp_path / "whole/summary.txt").read_text()


_PAIR = ("query", "value")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trainable": "all"}, "config.trainable='all' must be 'adapters'"),
        ({"keep_best": True}, "config.keep_best=True: config.deep_lora makes the adapters"),
        ({"deep_lora.rank": 5, "deep_lora.basis_rate": 0.01}, "config.deep_lora.rank=5 must be ev"),
        ({"deep_lora.rank": 18}, "config.deep_lora.rank at layers/0/attention/query=18"),
        ({"method": "tuning"}, "config.deep_lora=.* has no meaning with config.method='tuning'"),
    ],
)
def test_bad_configs(config, tmp_path, fields, message):
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_configs_load():
    for variant in ("deep_8", "three_1", "random_64", "lora_1"):
        train.check(minilm.get_config(f"{variant},mrpc,16"))
    assert minilm.get_config("three_2,sst2,all").deep_lora.basis_rate is None
    for wrong in ("deep_3,sst2,16", "deep_8,sst2", "deep_8,squad,16"):
        with pytest.raises(ValueError, match="the argument is VARIANT,TASK,EXAMPLES"):
            minilm.get_config(wrong)


@pytest.mark.parametrize(("size", "count"), [("full", 3 * 2 * 3 * 20), ("smoke", 3)])
def test_the_sweep_expands(size, count):
    found = cells.expand(deep_lora_minilm.get_config(size))
    assert len(found) == count
    for cell in found[-3:]:
        train.check(cell.config)
    deep, three, lora = (cell.config for cell in found[-3:])
    assert (deep.deep_lora.basis_rate, three.deep_lora.basis_rate) == (0.01, None)
    assert deep.deep_lora.rank == (8 if size == "smoke" else 64)
    assert lora.adapters[0][1]["rank"] == deep.deep_lora.rank
