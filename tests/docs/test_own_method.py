"""The method of the tutorial, on a checkpoint of toy size."""

import dataclasses
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from examples import anchored_cores
from experiments import train
from mpojax import nn


@dataclasses.dataclass(frozen=True)
class Setup:
    """The fields of a run's setup that the method reads."""

    model: nnx.Module
    loss: Callable


def test_the_loss_grows_with_the_distance_to_the_start():
    layer = nn.MPOLinear.from_linear(nnx.Linear(12, 8, rngs=nnx.Rngs(0)))
    method = anchored_cores.AnchoredCores(anchored_cores.AnchorSettings(weight=0.5))
    setup = method.setup(
        Setup(layer, lambda model, batch, key: (jnp.float32(2.0), {"accuracy": 1}))
    )
    value, metrics = setup.loss(layer, None, None)
    assert value == 2.0
    assert metrics == {"accuracy": 1, "distance": 0.0}

    graph, cores, rest = nnx.split(layer, nn.AuxiliaryCore, ...)
    moved = nnx.merge(graph, jax.tree.map(lambda x: x + 1, cores), rest)
    value, metrics = setup.loss(moved, None, None)
    size = sum(leaf.size for _, leaf in nnx.to_flat_state(cores))
    assert metrics["distance"] == pytest.approx(size, rel=1e-5)
    assert value == pytest.approx(2.0 + 0.5 * size, rel=1e-5)


def _config(folder, weight):
    rows = ["a clever film\tgood", "a dull film\tbad"] * 8
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]), encoding="utf-8")
    config = anchored_cores.get_config()
    config.model, config.data_dir = str(folder / "bert-folder"), str(folder)
    config.task, config.max_length, config.lengths = "file:train=train.tsv,dev=dev.tsv", 8, (8,)
    config.held_out_examples = config.dev_examples = 0
    config.batch_size = config.eval_batch_size = 8
    config.steps, config.log_every = 8, 1
    config.optimizer.role_learning_rates = {"auxiliary": 3e-2}
    config.anchor.weight = weight
    return config


def _distance(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry["distance"] for entry in map(json.loads, lines) if "distance" in entry]


@pytest.mark.slow
def test_cores_stay_nearer_to_their_start(page_folder):
    ends = []
    for weight in (0.0, 10.0):
        run = page_folder / f"run-{weight}"
        assert train.run(_config(page_folder, weight), run) == 0
        distances = _distance(run)
        assert distances[0] == 0
        ends.append(distances[-1])
        assert json.loads((run / "result.json").read_text())["variant"] == "anchored"
    assert 0 < ends[1] < ends[0] / 2


def test_a_weight_that_is_not_allowed_is_one_line():
    with pytest.raises(ValueError, match=r"anchor.weight=-1 must be a finite number of at least 0"):
        anchored_cores.AnchorSettings(weight=-1)
