"""`experiments.compress --dry_run`: what is counted, and that headers alone are read."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mpojax as mj
from configs import compress as compress_config
from experiments import compress, plans
from mpojax import io, models
from mpojax.compression import matrices
from mpojax.io.hf import checkpoints
from mpojax.training.dry_run import program_flops
from tests.io import language_helpers
from tests.models import small, small_language

SIZES_7B = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 32,
    "head_size": 128,
    "intermediate_size": 11_008,
    "max_positions": 4096,
}


@pytest.fixture
def config():
    config = compress_config.get_config()
    config.budget = 0.6
    return config


def planned(config, model: models.Model) -> plans.Plan:
    return plans.plan(config, models.StoredModel.of(model), ())


def headers_alone(folder, config, shards: int = 4):
    """A folder in bfloat16 whose files have headers, and holes in the place of weights."""
    shapes = models.array_shapes(config)
    _, _, content, tensors = checkpoints.layout(config, shapes)
    wanted = {name: tensor.shape(shapes) for name, tensor in tensors.items()}
    names, index = sorted(wanted), {}
    for part in range(shards):
        header, start = {}, 0
        for name in names[part::shards]:
            stop = start + 2 * int(np.prod(wanted[name]))
            shape = list(wanted[name])
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, stop]}
            start, index[name] = stop, f"part-{part}.safetensors"
        text = json.dumps(header).encode()
        with (folder / f"part-{part}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + start)
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    text = json.dumps({"weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def test_seven_billion_parameters_are_planned_from_headers(config, tmp_path):
    headers_alone(tmp_path, dataclasses.replace(language_helpers.LLAMA, **SIZES_7B))
    assert sum(p.stat().st_blocks for p in tmp_path.iterdir()) * 512 < 2e6  # holes
    config.model = str(tmp_path)
    text = compress.plan(config)
    assert "6,738,415,616 parameters" in text
    assert "13.48 GB as stored" in text
    assert "1 forward; of 16,384 tokens 1 more and 1 back" in text
    for line in ("best, 60 %", "whitened, 60 %", "perplexity, dense"):
        assert line in text
    assert "GFLOP/s" in text


def test_forward_flops_are_those_of_the_program(config):
    model = models.build(small_language.LLAMA, rngs=nnx.Rngs(0))
    ids = jnp.zeros((2, 8), jnp.int32)
    counted = program_flops(jax.make_jaxpr(lambda model: model(ids))(model))
    assert planned(config, model)._forward(16, 8, logits=True) == counted


def test_more_is_planned_for_more(config):
    model = models.build(small_language.LLAMA, rngs=nnx.Rngs(0))
    few = {phase.name: phase for phase in planned(config, model).phases()}
    config.calibration.windows *= 2
    config.heal.steps = 10
    many = {phase.name: phase for phase in planned(config, model).phases()}
    for name in ("statistics", "best, 60 %"):
        assert many[name].single > few[name].single
        assert many[name].memory >= few[name].memory
    assert set(many) - set(few) == {"healing, 10 steps"}


def test_layer_by_layer_is_at_most_or_left_out_for_certain(config):
    model = models.build(small_language.LLAMA, rngs=nnx.Rngs(0))
    phases = {phase.name: phase for phase in planned(config, model).phases()}
    maybe = phases["best, 60 %"]
    assert maybe.passes.startswith("at most 2 forward, 5 of ")
    assert "all: at most " in planned(config, model).text(plans.Rates(1.0, 1.0, 1.0))
    config.calibration.update(windows=1, length=16)
    plan = planned(config, model)
    never = {phase.name: phase for phase in plan.phases()}["best, 60 %"]
    assert never.passes == "4 of 16 tokens"
    assert never.memory < maybe.memory
    assert "at most" not in plan.text(plans.Rates(1.0, 1.0, 1.0))


def test_pairs_of_layers_are_counted_where_they_may_share_cores(config, monkeypatch):
    plan = planned(config, models.build(small_language.LLAMA, rngs=nnx.Rngs(0)))

    def memory():
        return {phase.name: phase.memory for phase in plan.phases()}

    pairs = memory()
    monkeypatch.setattr(plans, "_OF_PAIRS", 0)
    alone = memory()
    more = {name: pairs[name] - alone[name] for name in pairs if pairs[name] != alone[name]}
    sizes = plan.model.matrix_sizes().items()
    widest = max(max(size) for path, size in sizes if path.startswith("layers"))
    assert more == {"best, 60 %": 8 * 9 * matrices.num_threads() * widest**2}


def test_the_search_for_cores_that_layers_share_is_planned(config):
    config.compare = ("pivoted", "shared")
    deep = dataclasses.replace(small_language.LLAMA, num_layers=6)
    plan = plans.plan(
        config, models.StoredModel.of(models.build(deep, rngs=nnx.Rngs(0))), config.compare
    )
    assert plan._groups("best") == {2: 2}
    assert plan._groups("shared") == {2: 5, 3: 4, 4: 3}
    assert plan._groups("pivoted") == {}
    alone, shared = (
        each for each in plan.phases() if each.name in ("pivoted, 60 %", "shared, 60 %")
    )
    assert shared.at_most
    assert not alone.at_most
    assert shared.double > alone.double
    assert shared.memory > alone.memory


def test_of_a_mixture_the_experts_that_a_token_has_are_counted(config):
    dense = models.build(small_language.LLAMA, rngs=nnx.Rngs(0))
    rule = mj.Rule(".*feed_forward", number=4, form="switch", router="topk", k=2)
    mixture = mj.merge(mj.add_experts(dense, [rule], rngs=nnx.Rngs(0)))
    plan, other = planned(config, mixture), planned(config, dense)
    sizes = dense.config.matrix_sizes().items()
    block = sum(math.prod(size) for path, size in sizes if "feed_forward" in path)
    assert plan._forward(16, 8) == other._forward(16, 8) + 16 * 2 * block
    assert plan.matched == other.matched + 3 * block
    phases = plan.phases()[2::2]
    assert [phase.name for phase in phases] == [
        f"{name}, 60 %" for name in ("experts", "whitened", "activation_scaled", "svd")
    ]
    assert phases[0].double > 10 * phases[1].double  # forms without a closed form
    config.compare = ("best",)
    with pytest.raises(ValueError, match="method='best' knows no experts"):
        plans.plan(config, models.StoredModel.of(mixture), ["best"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 1e-3}, "smallest feasible budget"),
        ({"budget_of": "half"}, "config.budget_of='half'"),
        ({"evaluation.num_windows": None}, "config.evaluation.num_windows, must be a number"),
    ],
)
def test_what_cannot_be_done_is_not_planned(config, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        planned(config, models.build(small_language.LLAMA, rngs=nnx.Rngs(0)))


def test_weights_that_are_in_memory_all_the_time_are_counted(config):
    stored = models.StoredModel.of(models.build(small_language.LLAMA, rngs=nnx.Rngs(0)))
    files, memory = (plans.plan(config, stored, (), in_memory=held) for held in (False, True))
    for one, other in zip(files.phases(), memory.phases(), strict=True):
        assert other.memory == pytest.approx(one.memory + files.stored_bytes)
    assert " GB in memory\n" in memory.text(plans.Rates(1.0, 1.0, 1.0))


def test_variants_are_not_planned(config):
    stored = models.StoredModel.of(models.build(small_language.LLAMA, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="names the variant 'mpo': leave --dry_run out"):
        plans.plan(config, stored, ["best", "mpo"])


def test_encoders_are_not_planned(config):
    with pytest.raises(ValueError, match="--dry_run plans the compression of a decoder"):
        planned(config, models.build(small.BERT, rngs=nnx.Rngs(0)))
    config.budget = None
    with pytest.raises(ValueError, match="a decoder needs a size"):
        planned(config, models.build(small_language.LLAMA, rngs=nnx.Rngs(0)))


def test_weights_that_are_not_looked_at_may_be_anything(tmp_path):
    headers_alone(tmp_path, language_helpers.LLAMA)
    stored = io.open_pretrained(tmp_path, check=False)
    assert stored.num_layers == language_helpers.LLAMA.num_layers
    assert not np.asarray(stored.arrays["head/kernel"]).any()
