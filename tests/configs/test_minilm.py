"""The MiniLM study: every config loads, is valid, and compares equal sizes."""

import pytest

from configs.mpop import minilm
from configs.sweeps import bond_dims, mpop_minilm
from experiments import cells, train


@pytest.mark.parametrize("variant", minilm.VARIANTS)
@pytest.mark.parametrize("task", minilm.TASKS)
def test_every_argument_gives_a_valid_config(variant, task):
    config = minilm.get_config(f"{variant},{task}")
    train.check(config)
    assert (config.variant, config.task) == (variant, task)


def test_every_variant_trains_for_the_same_number_of_steps():
    for variant in minilm.VARIANTS:
        config = minilm.get_config(f"{variant},rte")
        squeeze = config.squeeze
        phases = squeeze.steps * squeeze.max_phases if squeeze else 0
        assert config.steps + phases == minilm.STEPS


def test_compressed_variants_have_one_budget():
    budgets = {
        (config.squeeze.budget if config.squeeze else config.budget)
        for config in (minilm.get_config(f"{v},rte") for v in ("mpop", "dir", "svd"))
    }
    assert budgets == {minilm.BUDGET}


@pytest.mark.parametrize("argument", ["dense", "dense,imdb", "some,rte", ""])
def test_an_unknown_argument_is_refused(argument):
    with pytest.raises(ValueError, match="VARIANT,TASK"):
        minilm.get_config(argument)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (mpop_minilm.get_config(), 60),
        (mpop_minilm.get_config("smoke"), 5),
        (bond_dims.get_config("smoke"), 5),
    ],
)
def test_the_sweeps_expand_to_valid_cells(config, count):
    expanded = cells.expand(config)
    assert len(expanded) == count
    for cell in expanded:
        train.check(cell.config.copy_and_resolve_references())
