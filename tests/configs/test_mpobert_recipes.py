"""Recipes of MPOBERT's fine-tuning, and its multi-task and few-shot configs."""

import pytest

from configs.mpobert import fewshot, multitask, recipes, systems
from configs.mpobert import finetune as single_task
from configs.mpop import base
from configs.sweeps import fewshot as fewshot_sweep
from experiments import cells, train
from mpojax import data, training

# task: examples of a step, steps, steps of the warm-up, learning rate, rate of the cores
EXPECTED = {
    "rte": (128, 5 * 20, 50, 5e-6, 5e-6),
    "cola": (128, 5 * 67, 80, 2e-6, 6e-6),
    "mrpc": (128, 5 * 29, 20, 5e-6, None),
    "stsb": (64, 3598, 214, 2e-6, 2.8e-6),
    "sst2": (128, 3 * 527, 500, 2e-6, None),
    "qqp": (512, 14_000, 1000, 5e-6, 2.8e-6),
    "mnli": (128, 3 * 3068, 500, 2e-6, None),
    "qnli": (512, 3 * 205, 500, 2e-6, 2.8e-6),
}


@pytest.mark.parametrize("task", EXPECTED)
def test_the_recipe_of_every_task(task):
    batch, steps, warmup, rate, core_rate = EXPECTED[task]
    config = base.get_config()
    recipes.apply(config, task)
    train.check(config)
    assert set(config) == set(base.get_config())
    assert (config.task, config.batch_size, config.grad_accum_steps) == (task, batch, 4)
    assert (config.steps, config.max_length, config.keep_best) == (steps, 128, True)
    settings = config.optimizer
    assert round(settings.warmup_steps * config.steps) == warmup
    assert (settings.learning_rate, settings.weight_decay, settings.clip_norm) == (rate, 0.01, 1.0)
    rates = settings.role_learning_rates.to_dict()
    assert rates == ({} if core_rate is None else {"central": core_rate, "auxiliary": core_rate})
    roles = {"encoder/a/cores/0": "auxiliary", "encoder/a/cores/1": "central", "head": "other"}
    assert training.make_optimizer(settings.to_dict(), roles, config.steps) is not None


def test_tasks_of_recipes_are_those_of_the_table():
    assert set(recipes.RECIPES) == set(recipes.EXAMPLES) == set(multitask.TASKS)
    assert set(multitask.TASKS) == set(data.TASKS) - {"wnli", "squad", "vader_movie"}
    assert set(recipes.RANGES_48) == set(recipes.RECIPES) - {"mrpc"}
    with pytest.raises(ValueError, match="no recipe for task='wnli'"):
        recipes.apply(base.get_config(), "wnli")


@pytest.mark.parametrize("variant", systems.SYSTEMS)
def test_every_variant_gives_valid_configs(variant):
    config = multitask.get_config(variant)
    train.check(config)
    assert (config.variant, config.tasks) == (variant, multitask.TASKS)
    assert config.metrics.to_dict() == {"mrpc": "f1"}
    assert not {"task", "metric", "squeeze"} & set(config)
    few = fewshot.get_config(f"{variant},mnli")
    train.check(few)
    single = single_task.get_config(f"{variant},rte") if variant != systems.MINILM else few
    for name in ("model", "architecture", "adapters", "variant"):
        assert config[name] == few[name] == single[name]
    assert (few.variant, few.task, few.shots, few.keep_best) == (variant, "mnli", 10, False)


def test_the_length_of_a_multi_task_run():
    assert multitask.get_config("bert12").steps == 3 * 7415
    four = multitask.get_config("bert12,sst2+cola+rte")
    assert four.tasks == ("sst2", "cola", "rte")
    assert four.steps == 3 * 613
    assert not four.metrics


def test_the_few_shot_sweep():
    sweep = fewshot_sweep.get_config("bert12")
    expanded = cells.expand(sweep)
    assert len(expanded) == 2 * 3 * 5
    assert {(c.config.task, c.config.shots) for c in expanded} == {
        (task, shots) for task in ("sst2", "mnli") for shots in (10, 20, 30)
    }
    assert {c.config.draw for c in expanded} == set(range(5))
    for cell in expanded:
        train.check(cell.config)
    assert len(cells.expand(fewshot_sweep.get_config("minilm,smoke"))) == 6
    assert fewshot_sweep.get_config("minilm,rte+cola").tasks == ("rte", "cola")


@pytest.mark.parametrize(
    ("get_config", "argument", "message"),
    [
        (multitask.get_config, "mpobert13", "a variant of mpobert12"),
        (multitask.get_config, "bert12,sst2+wnli", r"tasks of mnli.*config.tasks and --config.st"),
        (fewshot.get_config, "bert12", "VARIANT,TASK"),
        (fewshot.get_config, "bert12,wnli", "a task of rte, cola"),
        (fewshot_sweep.get_config, "bert,sst2", "a variant of mpobert12"),
        (fewshot_sweep.get_config, "bert12,sst2+imdb", "a task of rte"),
    ],
)
def test_unknown_arguments(get_config, argument, message):
    with pytest.raises(ValueError, match=message):
        get_config(argument)
