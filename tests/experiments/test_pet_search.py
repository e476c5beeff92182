"""Searches from end to end, on a checkpoint of toy size."""

import csv
import functools
import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from configs.pet_search import base, minilm
from experiments import train
from mpojax import io, models, training
from mpojax.methods import moments
from mpojax.methods.pet import search as method
from tests.experiments import toy_encoder
from tests.experiments.toy import result_of


def make_config(checkpoint, texts, mode="structured"):
    config = toy_encoder.config(base.get_config(), checkpoint, texts)
    config.optimizer.learning_rate = 1e-3
    config.steps, config.checkpoint_every = 12, 5
    start = {"start": "offset"} if mode == "unstructured" else {}
    config.adapters = ((base.LAYERS, {"rank": 3} | start), (base.BIASES, {"kind": "bias"}))
    config.search.budget, config.search.rounds, config.search.last_round = 150, 3, 0.7
    config.search.mode, config.search.score_batches = mode, 2
    return config


@pytest.fixture
def config(checkpoint, texts):
    config = make_config(checkpoint, texts)
    config.checkpoint_every = 0
    return config


@pytest.fixture(scope="module")
def finished(checkpoint, texts, tmp_path_factory, copied_at):
    """Folder of an uninterrupted search, by mode."""

    @functools.cache
    def search(mode):
        folder = tmp_path_factory.mktemp(mode) / "run"
        with copied_at(5, folder, folder.parent / "killed"):  # between two rounds
            assert train.run(make_config(checkpoint, texts, mode), folder) == 0
        return folder

    return search


@pytest.mark.parametrize("gauge", ["svd", pytest.param("raw", marks=pytest.mark.slow)])
def test_a_structured_search(config, finished, tmp_path, checkpoint, gauge):
    if gauge == "svd":  # the default
        tmp_path = finished("structured")
    else:
        config.search.gauge = gauge
        assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    history = result["search"]["history"]
    assert [line["budget"] for line in history][-1] == 150
    costs = [line["cost"] for line in history]
    assert costs == sorted(costs, reverse=True)
    assert 150 - 3 * 32 < result["updates"] == costs[-1] <= 150
    assert result["trained"] == result["updates"] + result["head_parameters"]
    assert result["steps"] == 12
    with open(tmp_path / "kept.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["kept"]) for row in rows) == result["updates"]
    assert (tmp_path / "kept.png").stat().st_size > 5_000
    # The file on the base is the model that was evaluated.
    plain = io.load_pretrained(checkpoint)
    plain = models.with_head(plain, 2, pooling="mean", rngs=nnx.Rngs(0))
    tuned = io.load_adapter(plain, tmp_path / "adapter")
    sizes = models.array_shapes(tuned.config)
    names = models.adapter_arrays(tuned)
    assert sum(int(np.prod(sizes[name])) for name in names) == result["updates"]


# A search of this kind: test_nothing_is_compiled_again_and_dropped_entries_stay.
@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["taylor", "hybrid", "magnitude", "random"])
def test_an_unstructured_search(checkpoint, texts, finished, tmp_path, criterion):
    if criterion == "taylor":  # the default
        tmp_path = finished("unstructured")
    else:
        config = make_config(checkpoint, texts, "unstructured")
        config.search.criterion = criterion
        assert train.run(config, tmp_path) == 0
    assert result_of(tmp_path)["updates"] == 150


@pytest.mark.slow
def test_chains_and_the_training_from_the_start(config, tmp_path):
    config.adapters = ((base.LAYERS, {"kind": "mpo", "num_cores": 3, "bond": 4}),)
    config.search.budget, config.after_search = 400, "retrain"
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    assert 200 < result["updates"] <= 400
    assert result["retrain_fit"]["step"] == 12


def test_plain_tuning_of_adapters(config, tmp_path, checkpoint):
    config.search.budget = 0
    assert train.run(config, tmp_path) == 0
    result = result_of(tmp_path)
    assert result["search"] is None
    total = result["updates"] + result["head_parameters"]
    assert result["trained"] == total < result["total"]
    size = sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir())
    assert result["adapter_bytes"] == size
    assert 4 * total <= size <= 4 * total + 4_096
    plain = models.with_head(io.load_pretrained(checkpoint), 2, pooling="mean", rngs=nnx.Rngs(0))
    tuned = io.load_adapter(plain, tmp_path / "adapter")
    assert len(models.adapter_arrays(tuned)) > 0


# That meshes give the same numbers, of which scores are sums: tests/multi_device.
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["unstructured", "structured"])
def test_the_same_is_kept_on_one_and_on_eight_devices(
    checkpoint, texts, finished, tmp_path, monkeypatch, mode
):
    one = training.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(training, "make_mesh", lambda sizes: one)
    assert train.run(make_config(checkpoint, texts, mode), tmp_path) == 0
    monkeypatch.undo()
    eight = finished(mode)
    assert result_of(eight)["search"] == result_of(tmp_path)["search"]
    assert (eight / "kept.csv").read_text() == (tmp_path / "kept.csv").read_text()


@pytest.mark.parametrize(
    "mode", ["structured", pytest.param("unstructured", marks=pytest.mark.slow)]
)
def test_a_search_that_is_killed_resumes_to_the_same_end(checkpoint, texts, finished, mode):
    killed = finished(mode).parent / "killed"
    assert train.run(make_config(checkpoint, texts, mode), killed) == 0
    straight, resumed = result_of(finished(mode)), result_of(killed)
    assert resumed["fit"]["steps_run"] == 12 - 5
    assert straight["metrics"] == resumed["metrics"]
    assert straight["search"] == resumed["search"]
    assert straight["fit"]["metrics"]["loss"] == resumed["fit"]["metrics"]["loss"]


def test_nothing_is_compiled_again_and_dropped_entries_stay(config, tmp_path, monkeypatch):
    traces, seen = [], []
    original = method.Search._round

    def watched(self, loop, index):
        original(self, loop, index)
        traces.append(loop.step_function.traces)
        seen.append((self.superset, self.masks(loop.state)))
        entries = self.superset.entry_masks(seen[-1][1])
        trees = [loop.state.trainable]
        trees += [tree for tree, _ in moments.trees(loop.state.optimizer)]
        for tree in trees:  # updates that start at zero, and their moments
            arrays = self._logical(tree)
            for name, kept in entries.items():
                assert not np.any(np.where(kept, 0, arrays[name])) or name.endswith("bias")

    monkeypatch.setattr(method.Search, "_round", watched)
    config.search.mode = "unstructured"
    assert train.run(config, tmp_path) == 0
    assert traces == [1, 1, 1]
    result = result_of(tmp_path)
    assert (result["fit"]["step"], result["updates"]) == (12, 150)
    superset, masks = seen[-1]
    assert superset.cost(masks) == 150
    for (_, before), (_, after) in itertools.pairwise(seen):
        for unit, arrays in after.items():
            for old, new in zip(before[unit], arrays, strict=True):
                assert not np.any(new & ~old)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search__budget": 10**6}, "budget=1000000 is more than the .* of the super-set"),
        ({"search__budget": 3}, "budget=3 is below the smallest group"),
        ({"search__rounds": 20}, "20 rounds do not fit between step 1 and step 8 of 12"),
        ({"search__criterion": "best"}, "search.criterion='best' must be one of 'taylor'"),
        ({"search__warm_steps": 0.0}, "search.warm_steps=0.0 must be a finite number above 0"),
        ({"adapters": ()}, "has nothing to search: give the super-set"),
        ({"trainable": "all"}, "a search trains the adapters"),
        ({"squeeze": {"steps": 2}}, "config.squeeze=.* has no meaning with config.method='pet"),
        ({"adapters": ((".*/out", {"kind": "bottleneck", "width": 2}),)}, "cannot be searched"),
        (
            {"after_search": "stop"},
            "config.after_search='stop' must be one of 'continue', 'retrain'",
        ),
        ({"adapters": ((".*/query", {"rank": 2, "start": "offset"}),)}, "has an offset start"),
        ({"adapters": (("no_such", {"rank": 2}),)}, "matches no matrix"),
    ],
)
def test_a_bad_config_leaves_nothing_behind(config, tmp_path, changes, message):
    for name, value in changes.items():
        first, _, last = name.partition("__")
        if last:
            config[first][last] = value
        else:
            config[first] = value
    with pytest.raises(ValueError, match=message):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_variant_of_minilm_is_a_config():
    for variant in minilm.VARIANTS:
        config = minilm.get_config(f"{variant},sst2")
        train.check(config)
        assert bool(config.search.budget) == ("structured" in variant)
    with pytest.raises(ValueError, match="the argument is VARIANT,TASK"):
        minilm.get_config("lora_3,sst2")
