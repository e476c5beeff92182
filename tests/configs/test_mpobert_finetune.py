"""Fine-tuning configs of MPOBERT's rows, and the search of the 48-layer ones."""

import pytest

from configs.mpobert import finetune, paper, pretraining, recipes
from configs.mpop import albert, base
from configs.sweeps import mpobert48
from experiments import cells, train
from experiments.render import figures, frames
from mpojax import compression, models, training
from mpojax.methods import mpobert
from mpojax.training import workdir

TOTALS = {
    "mpobert12": 19_415_474,
    "mpobert12_adapter4": 19_720_114,
    "mpobert12_adapter8": 20_024_754,
    "mpobert12_adapter64": 24_289_714,
    "all_shared12": 12_329_318,
    "mpobert24": 46_071_298,
    "mpobert48": 74_456_578,
    "mpobert48plus": 99_649_026,
    "mpobert48plus_adapter8": 102_794_754,
    "albert12": 11_685_122,
    "albert24": 17_686_018,
    "albert_xxlarge12": 222_603_778,
    "bert12": 109_483_778,
    "bert24": 335_143_938,
    "mobilebert24": 24_582_914,
    "distilbert6": 66_955_010,
}


@pytest.mark.parametrize("variant", finetune.VARIANTS)
def test_every_config_passes_the_checks_of_the_job(variant):
    known = set(base.get_config())
    for task in finetune.TASKS:
        config = finetune.get_config(f"{variant},{task}")
        assert set(config) == known
        assert (config.variant, config.task) == (variant, task)
        assert config.metric == ("f1" if task == "mrpc" else "")
        assert config.keep_best
        assert 0 < config.eval_every <= config.steps
        train.check(config)
        roles = {"cores/0": "auxiliary", "cores/1": "central", "a": "adapter", "head": "other"}
        assert training.make_optimizer(config.optimizer.to_dict(), roles, config.steps) is not None


# experiments/test_mpobert_tables.py has them by the rows of the tables.
@pytest.mark.slow
def test_counts_of_every_variant():
    assert {name: finetune.counts(name)["total"] for name in finetune.VARIANTS} == TOTALS
    for name in finetune.VARIANTS:
        counts = finetune.counts(name)
        assert counts["trainable"] == counts["total"]  # everything is tuned
        assert bool(counts["adapter"]) == ("adapter" in name)


@pytest.mark.parametrize("variant", [n for n in finetune.VARIANTS if "adapter" in n])
def test_adapter_rules_fit_the_pretrained_model(variant):
    entry = finetune.VARIANTS[variant]
    pretrained, _ = mpobert.variant(entry.encoder)
    ranks = compression.adapter_settings(pretrained, entry.adapters)
    assert {s.rank for s in ranks.values()} == {int(variant.partition("_adapter")[2])}
    outside = {"pooler", "embeddings/projection"} & set(ranks)
    assert len(outside) == (2 if variant.startswith("mpobert12") else 0)
    assert len(ranks) - len(outside) == 4 * pretrained.num_layers
    fine_tuned, _ = finetune.encoder(variant)
    assert models.adapter_settings(fine_tuned) == ranks


def test_pretraining_makes_the_models_that_are_tuned():
    """Flags of the named runs exist, and the folder is the default of config.model."""
    defaults = pretraining.get_config()
    for name, variant in finetune.VARIANTS.items():
        if not variant.pretraining:
            assert variant.weights.count("/") == 1  # a hub id
            continue
        first, folder = variant.pretraining.split()
        assert folder == f"--workdir={variant.weights.removesuffix('/model')}"
        file, _, argument = first.removeprefix("--config=").partition(":")
        assert file == "configs/mpobert/paper.py"
        config = paper.get_config(argument)
        assert set(config.model) == set(defaults.model)
        assert config.variant == variant.encoder
        encoder, _ = mpobert.variant(variant.encoder)
        assert config.model.num_layers == encoder.num_layers, name
        assert config.model.groups == encoder.layer_groups
        assert config.model.share_auxiliary == encoder.shares_everything


def test_dense_models_have_the_hyper_parameters_of_their_scores():
    """Those of MPOP's dense ALBERT, whose printed scores this paper repeats."""
    for task in recipes.RECIPES:
        ours, theirs = finetune.get_config(f"albert12,{task}"), albert.get_config(f"dense,{task}")
        changed = {"variant": "albert12", "metric": "f1" if task == "mrpc" else ""}
        theirs.update(changed)
        assert workdir.differences(workdir.plain(theirs), workdir.plain(ours)) == []


def test_48_layers_start_from_the_middle_of_the_published_ranges():
    for task, recipe in recipes.RANGES_48.items():
        config = finetune.get_config(f"mpobert48,{task}")
        low, high = recipe.rates
        rate = config.optimizer.learning_rate
        assert rate / low == pytest.approx(high / rate)
        assert {*config.optimizer.role_learning_rates.to_dict().values()} == {rate}
        assert config.optimizer.weight_decay == recipe.weight_decay / 2
        few = finetune.get_config(f"mpobert12,{task}")
        seen = config.steps * config.batch_size
        assert 0.99 < seen / (few.steps * few.batch_size) <= 1
    assert finetune.ranges("mrpc") == recipes.RANGES_48["rte"]
    assert finetune.ranges("squad") == recipes.RANGES_48["mnli"]


@pytest.mark.parametrize("variant", mpobert48.VARIANTS)
def test_the_search_covers_the_ranges(variant):
    for task in finetune.TASKS:
        config = mpobert48.get_config(f"{variant},{task}")
        found, recipe = cells.expand(config), finetune.ranges(task)
        assert len(found) == 9 * len(recipe.batch_sizes) * len(recipe.grad_accum_steps)
        figures.read(config.plots, list(found[0].values), frames.REPEATS)
        rates = {cell.config.optimizer.learning_rate for cell in found}
        cores = {tuple(c.config.optimizer.role_learning_rates.to_dict().items()) for c in found}
        assert (min(rates), max(rates), len(rates)) == (*recipe.rates, 3)
        assert {rate for pair in cores for _, rate in pair} == rates
        batches = {(cell.config.batch_size, cell.config.grad_accum_steps) for cell in found}
        assert batches == {
            (size * parts, parts)
            for size in recipe.batch_sizes
            for parts in recipe.grad_accum_steps
        }
        for cell in found:
            train.check(cell.config)
        # The row's own config is one of the cells.
        own = workdir.fingerprint(config.cell)
        assert sum(workdir.fingerprint(cell.config) == own for cell in found) == 1


@pytest.mark.parametrize(
    ("module", "argument", "message"),
    [
        (finetune, "mpobert13,rte", "a variant of mpobert12, mpobert12_adapter4"),
        (finetune, "mpobert12,wnli", "a task of rte, cola, mrpc, stsb, sst2, qqp, mnli, qnli, sq"),
        (finetune, "mpobert12", "the argument is VARIANT,TASK"),
        (mpobert48, "mpobert12,rte", "a variant of mpobert48, mpobert48plus"),
    ],
)
def test_mistakes_are_explained(module, argument, message):
    with pytest.raises(ValueError, match=message):
        module.get_config(argument)


def test_bad_adapter_fields():
    config = finetune.get_config("mpobert12_adapter8,rte")
    config.adapter_phase = "later"
    with pytest.raises(ValueError, match="'later' must be one of 'fine_tuning', 'pre_training'"):
        train.check(config)
    config = finetune.get_config("mpobert12,rte")
    config.adapters = ((finetune.ATTENTION, {"size": 8}),)
    with pytest.raises(ValueError, match="unknown 'size', did you mean 'side'"):
        train.check(config)


def test_settings_of_variants_are_of_two_labels():
    for name in ("mpobert12", "albert12", "albert_xxlarge12"):
        config, shapes = finetune.encoder(name)
        assert (config.num_labels, config.masked_lm) == (2, False)
        assert bool(shapes) == name.startswith("mpobert")
