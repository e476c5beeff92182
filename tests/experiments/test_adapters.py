"""Adapters of fine-tuning runs: added to a pre-trained MPOBERT, or trained with it before."""

import json

import numpy as np
import pytest
from flax import nnx

from configs.mpobert import finetune as rows
from configs.mpop import base
from experiments import runs
from mpojax import io, models
from mpojax.methods import mpobert
from tests.experiments import toy
from tests.experiments.toy_encoder import WORDS

ADAPTERS = ((rows.ATTENTION, {"rank": 2}), (rows.OUTSIDE, {"rank": 1}))
NUMBERS = 2 * 4 * 2 * (16 + 16) + (16 + 16) + (8 + 16)  # of two layers, the pooler, the mapping


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A tiny MPOBERT as a pre-training run leaves it, and the same with adapters."""
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    sizes = {"num_heads": 2, "embedding_size": 8, "vocab_size": len(WORDS), "max_positions": 16}
    for name, fields in (("plain", {}), ("adapted", {"adapter_rank": 2})):
        model = models.build(
            *mpobert.settings(2, 16, num_cores=3, **sizes, **fields), rngs=nnx.Rngs(0)
        )
        io.save_pretrained(model, folder / name, tokenizer_from=folder)
    return folder


@pytest.fixture
def config(pretrained, tmp_path):
    text = "\n".join(["text\tlabel", *("good film\tyes", "bad plot\tno") * 8])
    (tmp_path / "texts.tsv").write_text(text, encoding="utf-8")
    config = base.get_config()
    config.model, config.data_dir = str(pretrained / "plain"), str(tmp_path)
    config.task = "file:train=texts.tsv,dev=texts.tsv"
    config.max_length, config.lengths = 8, (8,)
    config.batch_size = config.eval_batch_size = 8
    config.steps, config.checkpoint_every = 2, 0
    config.adapters = ADAPTERS
    return config


def setup_of(config):
    return runs.set_up(*runs.read(config))


def test_a_run_with_adapters_and_one_that_goes_on_from_it(config, tmp_path):
    config.save_model = True
    before = setup_of(config)
    plain = config.copy_and_resolve_references()
    plain.adapters = ()
    batch = before.dev[0]
    inputs = [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")]
    expected = setup_of(plain).model(*inputs)
    # Nothing changes at step 0.
    np.testing.assert_allclose(before.model(*inputs), expected, rtol=1e-5, atol=1e-6)
    assert toy.main(config, str(tmp_path / "first")) == 0
    result = json.loads((tmp_path / "first" / "result.json").read_text(encoding="utf-8"))
    assert result["counts"]["adapter"] == NUMBERS
    arrays = models.to_arrays(io.load_pretrained(tmp_path / "first" / "model"))
    assert all(arrays[name].any() for name in arrays if name.endswith("query/adapter/up"))
    config.init_checkpoint = str(tmp_path / "first" / "model")
    reused = models.to_arrays(setup_of(config).model)
    for name, array in arrays.items():
        np.testing.assert_array_equal(reused[name], array)


def test_adapters_from_pre_training(config, pretrained):
    config.adapter_phase = "pre_training"
    with pytest.raises(
        ValueError, match=r"at .* there is none there and low_rank\(rank=\d\) in the config"
    ):
        setup_of(config)
    config.model = str(pretrained / "adapted")
    with pytest.raises(ValueError, match=r"must have the adapters of config\.adapters"):
        setup_of(config)
    config.adapters = ADAPTERS[:1]
    adapted = setup_of(config).model
    assert models.count_parameters(adapted)["adapter"] == 2 * 4 * 2 * (16 + 16)


def test_adapters_are_not_added_twice(config, pretrained):
    config.model = str(pretrained / "adapted")
    with pytest.raises(ValueError, match=r"has an adapter already, low_rank\(rank=2\)"):
        setup_of(config)
    config.adapters = ((".*/tower", {"rank": 2}),)
    with pytest.raises(ValueError, match="matches no matrix"):
        setup_of(config)
