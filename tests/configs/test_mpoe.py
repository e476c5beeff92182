"""Configs of the MPOE paper's rows: fields, experts, mask, optimizer, counts."""

import pytest

from configs.mpobert import recipes
from configs.mpoe import base, gpt2, multitask, t5
from experiments import train
from mpojax import compression, models
from mpojax.data.sources.glue import splits as glue_splits
from mpojax.methods import mpoe
from mpojax.methods.mpoe import gradient_mask

FIELDS = set(base.get_config())
T5_VARIANTS = ("dense", "switch8", "moe8", "mpoe8", "mpoe16", "large_dense", "large_mpoe8")
GPT2_VARIANTS = (
    *("dense", "switch8", "moe8", "mpoe8", "mpoe16", "unshared8", "mpoe8_nomask"),
    *("mpoe8_m3", "mpoe8_m7", "mpoe8_m9"),
)
ROLES = {"cores/0": "auxiliary", "cores/1": "central", "head": "other"}


def check(config, architecture, variant):
    """What holds for every row."""
    assert set(config) == FIELDS
    assert config.architecture == architecture
    assert config.model == base.WEIGHTS[architecture]
    train.check(config)
    chosen = mpoe.fields(variant)
    for name, value in (chosen or {"form": "dense"}).items():
        assert config.experts[name] == value
    assert set(config.experts) == set(base.get_config().experts)
    # The rules of the job fit the published model, and give the count of the table.
    rules = train.check(config)[2].model.expert_rules
    assert bool(rules) == (variant != "dense")
    settings, shapes = models.PRESETS[architecture], {}
    if rules:
        settings, shapes = compression.planned_experts(settings, {}, rules)
        planned = mpoe.planned(architecture, variant)
        assert (settings.experts[0][1], shapes) == (planned[0].experts[0][1], planned[1])
        assert all(settings.experts_of(path) for path in settings.feed_forwards())
    mask = config.optimizer.central_mask
    assert (mask.rate, mask.mode, mask.granularity) == (mpoe.mask_rate(variant), "skip", "step")
    assert set(config.optimizer) == set(gradient_mask.default_config())
    optimizer = gradient_mask.make_optimizer(
        config.optimizer, ROLES, config.steps, seed=config.seed
    )
    warmed_up = round(config.optimizer.warmup_steps * config.steps)
    peak = config.optimizer.learning_rate
    assert float(optimizer.schedule(warmed_up)) == pytest.approx(peak, rel=1e-2)
    assert config.keep_best
    assert 0 < config.eval_every <= config.steps // 2


@pytest.mark.parametrize("name", T5_VARIANTS)
def test_t5(name):
    is_large = name.startswith("large_")
    variant = name.removeprefix("large_")
    for task in ("rte", "mnli"):
        config = t5.get_config(f"{name},{task}")
        check(config, "t5-large" if is_large else "t5-base", variant)
        train.check(config)
        assert (config.variant, config.task, config.tasks) == (name, task, ())
        assert (config.dropout, config.label_smoothing, config.max_length) == (0.1, 0.1, 128)
        assert config.optimizer.learning_rate == 1e-4
        # As long as the authors' warm-up, or a tenth of a short run.
        warmup = config.optimizer.warmup_steps * config.steps
        assert warmup == pytest.approx(320 if is_large or task == "mnli" else config.steps / 10)
        seen = config.steps * config.batch_size
        epochs = 3 if is_large or task == "mnli" else 20
        assert seen / t5.examples(task) == pytest.approx(epochs, rel=0.01)


def test_t5_on_every_task():
    steps = {task: t5.get_config(f"mpoe8,{task}").steps for task in t5.TASKS}
    assert set(steps) == set(recipes.RECIPES)
    assert steps["sst2"] == 3 * -(-66_349 // 32)
    assert steps["rte"] == 1560
    assert set(t5.HELD_OUT) == set(glue_splits.HELD_OUT)
    large = t5.get_config("large_mpoe8,mnli")
    assert (large.batch_size, large.steps) == (4, 3 * -(-recipes.EXAMPLES["mnli"] // 4))


def test_the_authors_files_for_t5_base_end_in_their_warm_up():
    """What the docstring says of RTE."""
    steps = -(-recipes.EXAMPLES["rte"] // 32)
    assert steps == 78
    assert 3 * steps < t5.WARMUP


@pytest.mark.parametrize("variant", ["dense", "mpoe4", "switch4"])
def test_multitask(variant):
    config = multitask.get_config(variant)
    check(config, "t5-base", variant)
    train.check(config)
    assert (config.tasks, config.task, config.variant) == (t5.TASKS, "", variant)
    assert (config.steps, config.batch_size, config.eval_every) == (65_536, 32, 1000)
    assert config.optimizer.learning_rate == 3e-5
    assert config.optimizer.warmup_steps * config.steps == 500
    assert config.temperature == 10.0
    few = multitask.get_config(f"{variant},sst2+rte")
    assert few.tasks == ("sst2", "rte")


@pytest.mark.parametrize("variant", GPT2_VARIANTS)
def test_gpt2(variant):
    for texts in gpt2.STEPS:
        config = gpt2.get_config(f"{variant},{texts}")
        check(config, "gpt2", variant)
        train.check(config)
        assert (config.dataset, config.variant, config.length) == (texts, variant, 1024)
        assert bool(config.bleu_prompts) == (texts == "wikitext2")
        assert bool(config.samples) == (texts != "wikitext2")
        assert not config.experts.share_bias


def test_chains_start_in_the_authors_gauge():
    for variant in GPT2_VARIANTS:
        config = gpt2.get_config(f"{variant},wikitext2")
        has_chains = variant.startswith(("mpoe", "unshared"))
        assert config.experts.gauge == ("symmetric" if has_chains else "identity")


@pytest.mark.parametrize(
    ("module", "name", "architecture", "variant"),
    [
        (t5, "large_mpoe8", "t5-large", "mpoe8"),
        (t5, "moe8", "t5-base", "moe8"),
        (multitask, "mpoe4", "t5-base", "mpoe4"),
        (gpt2, "mpoe8_m7", "gpt2", "mpoe8_m7"),
    ],
)
def test_counts(module, name, architecture, variant):
    assert module.counts(name) == mpoe.counts(architecture, variant)


@pytest.mark.parametrize(
    ("module", "argument", "message"),
    [
        (t5, "mpoe8,wnli", "a task of mnli, qnli, sst2, rte, qqp, cola, mrpc, stsb and a variant"),
        (t5, "mpoe8", "the argument is VARIANT,TASK"),
        (t5, "large_mpeo8,rte", "unknown variant 'mpeo8' of MPOE"),
        (multitask, "mpoe4,sst2+wnli", r"\(not wnli\)"),
        (multitask, "mpoe", "unknown variant 'mpoe' of MPOE"),
        (gpt2, "mpoe8,brown", "texts of wikitext2, news, imdb"),
        (gpt2, "mpoe8_m4,news", "then any of _m3, _m5"),
    ],
)
def test_mistakes_are_explained(module, argument, message):
    with pytest.raises(ValueError, match=message):
        module.get_config(argument)
