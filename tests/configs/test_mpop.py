"""Configs of the paper's rows: all load, fit their models, and count as the paper prints."""

import dataclasses
import math

import pytest
from flax import nnx

from configs.mpop import albert, base, bert, distilbert, mobilebert, rows
from experiments import train
from mpojax import compression, models, training
from mpojax.methods import mpop
from mpojax.methods.mpop.settings import SqueezingSettings

FILES = {module.MODEL.architecture: module for module in (albert, bert, distilbert, mobilebert)}
ROWS = [(name, variant) for name, module in FILES.items() for variant in module.MODEL.variants]


def counted(config):
    found = rows.counts(config)
    return found["total"], found["trainable"]


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_every_config_loads_and_fits_its_model(name, variant):
    module = FILES[name]
    known = set(base.get_config())
    for task in rows.TASKS:
        config = module.get_config(f"{variant},{task}")
        assert set(config) == known
        assert (config.architecture, config.variant, config.task) == (name, variant, task)
        assert config.steps > 0
        train.check(config)
        squeeze = config.squeeze.to_dict()
        assert bool(squeeze) == (variant == "mpop")
        assert SqueezingSettings(**squeeze).budget == squeeze.get("budget")
    config = module.get_config(f"{variant},cola")
    shapes = compression.planned_shapes(models.PRESETS[name], config.rules) if config.rules else {}
    labelled = dataclasses.replace(models.PRESETS[name], num_labels=2)
    model = mpop.abstract(labelled, shapes)
    optimizer = training.make_optimizer(
        config.optimizer.to_dict(), training.roles(model), config.steps
    )
    trained = nnx.state(model, nnx.Param)
    assert optimizer is not None
    assert sum(math.prod(v.shape) for _, v in nnx.to_flat_state(trained)) == counted(config)[0]
    if squeeze := config.squeeze.to_dict():
        SqueezingSettings(**squeeze).check(model)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("lfa,sst2", "variants: dense, full, full_lfa, mpop, dir, svd, released; tasks: sst2"),
        ("dense", r"albert.py:dense: the argument must be VARIANT,TASK"),
        ("dense,sst", "tasks: sst2, mnli"),
    ],
)
def test_unknown_arguments(argument, message):
    with pytest.raises(ValueError, match=message):
        albert.get_config(argument)


def test_albert_counts():
    expected = {
        "dense,sst2": (11_685_122, 11_685_122),
        "full,sst2": (12_695_286, 12_695_286),
        "full_lfa,sst2": (12_695_286, 1_187_574),
        "dir,sst2": (10_897_430, 1_083_606),
        "released,sst2": (9_920_566, 8_000_566),
        "released,rte": (10_005_366, 8_005_366),
        "released,qnli": (10_723_051, 1_135_339),
        "released,mrpc": (10_383_851, 1_116_139),
        "released,wnli": (2_484_331, 552_147),
    }
    assert {name: counted(albert.get_config(name)) for name in expected} == expected


def test_albert_squeezed_counts():
    expected = {
        "sst2": (9_903_686, 1_019_478),
        "cola": (9_859_910, 1_016_406),
        "qnli": (8_576_614, 937_014),
        "mnli": (8_485_894, 931_734),
    }
    found = {task: albert.squeezed_counts(task) for task in expected}
    assert {t: (c["total"], c["trainable"]) for t, c in found.items()} == expected
    assert albert.squeezed_total("rte") == 9_206_526
    assert albert.get_config("mpop,sst2").squeeze.budget == 9_903_686.0
    assert albert.get_config("svd,rte").budget == 9_206_526.0


def test_bert_counts():
    expected = {
        "dense,rte": (109_483_778, 109_483_778),
        "full_lfa,rte": (118_876_706, 9_759_266),
        "last_1,rte": (109_483_778, 31_517_186),
        "last_2,rte": (109_483_778, 38_605_058),
        "last_3,rte": (109_483_778, 45_692_930),
    }
    assert {name: counted(bert.get_config(name)) for name in expected} == expected


def test_distilbert_counts():
    assert counted(distilbert.get_config("dense,rte")) == (66_955_010, 66_955_010)
    assert counted(distilbert.get_config("full_lfa,rte")) == (72_354_914, 5_704_802)


def test_hyper_parameters():
    config = albert.get_config("full_lfa,sst2")
    assert (config.steps, config.batch_size, config.seed) == (6315, 32, 42)
    assert config.optimizer.learning_rate == 2.7e-5
    assert config.optimizer.role_learning_rates.to_dict() == {"auxiliary": 2.8e-6}
    assert round(config.optimizer.warmup_steps * config.steps) == 500
    full = albert.get_config("full,cola").optimizer
    assert (full.learning_rate, full.weight_decay) == (4.08e-5, 0.0976)
    assert full.role_learning_rates.auxiliary == 1.0955e-5
    assert albert.get_config("dense,stsb").steps == 3598
    assert albert.get_config("dir,qqp").optimizer.learning_rate == 5e-6
    wnli = albert.get_config("mpop,wnli")
    total = wnli.steps + wnli.squeeze.max_phases * wnli.squeeze.steps
    assert round(wnli.optimizer.warmup_steps * total) == 200
    assert wnli.optimizer.role_learning_rates.to_dict() == {}
    assert albert.get_config("dir,wnli").rules[1] == (rows.FEED_FORWARD, {"bond": 72})
    assert albert.get_config("dense,sst2").optimizer.role_learning_rates.to_dict() == {}


def test_groups_cover_what_the_paper_decomposes():
    sizes = models.PRESETS["albert-base-v2"].matrix_sizes()
    shapes = compression.planned_shapes(
        models.PRESETS["albert-base-v2"], albert.get_config("full,sst2").rules
    )
    assert len(shapes) == 8
    assert shapes["embeddings/word"].in_factors == (5, 10, 10, 10, 6)
    assert shapes["pooler"].in_factors == (3, 4, 4, 4, 4)
    dense = {"embeddings/position", "embeddings/token_type", "embeddings/projection"}
    assert set(sizes) - set(shapes) == dense
