"""`print` of models, states and results: a page, whatever the size."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from mpojax import models, mpo, nn, training
from tests.io import language_helpers

ENCODER = models.EncoderConfig(
    vocab_size=40,
    hidden_size=16,
    num_layers=3,
    num_heads=2,
    intermediate_size=32,
    max_positions=12,
    num_labels=3,
    source_config='{"long": "' + "x" * 10_000 + '"}',
)
CONFIGS = {
    "encoder": ENCODER,
    "decoder": language_helpers.GPT2,
    "encoder_decoder": language_helpers.T5,
}


def _chains(config, bonds: int | None = 3) -> dict[str, mpo.MPOShape]:
    sizes = config.matrix_sizes()
    chosen = [path for path in sizes if "layers/" in path]
    return {path: mpo.MPOShape.balanced(*sizes[path], 3).with_bonds(bonds) for path in chosen}


def _abstract(config, shapes=None):
    return nnx.eval_shape(lambda: models.build(config, shapes, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_model_is_a_page(config):
    shapes = _chains(config)
    model = _abstract(config, shapes)
    page, counts = str(model), models.count_parameters(model)
    assert page == repr(model)
    assert len(page) < 4000
    assert page.startswith(f"{type(model).__name__}: layers {config.num_layers}, ")
    assert f"{sum(counts.values()):,} parameters (" in page
    assert f"central {counts['central']:,}, auxiliary {counts['auxiliary']:,}" in page
    assert f"{len(shapes)} of {len(config.matrix_sizes())} matrices in MPO form" in page
    assert "/*/attention/query: " in page


def test_chains_are_described_by_kind():
    shapes = _chains(ENCODER)
    page = repr(_abstract(ENCODER, shapes))
    one = shapes["layers/0/feed_forward/up"]
    bonds = ",".join(map(str, one.bonds))
    line = f"layers/*/feed_forward/up: 3 x 16x32, bonds {bonds}, 512 -> {one.num_params} parameters"
    assert line in page
    shapes["layers/1/feed_forward/up"] = one.with_bonds(2)
    page = repr(_abstract(ENCODER, shapes))
    assert "layers/*/feed_forward/up: 3 x 16x32, largest bonds 2 to 3, 512 -> " in page


def test_dense_abstract_and_traced_models_have_a_page_too():
    def build():
        return models.build(ENCODER, rngs=nnx.Rngs(0))

    page = repr(build())
    assert "all 23 matrices dense" in page
    assert repr(nnx.eval_shape(build)) == page
    seen = []
    graph, state = nnx.split(build())
    jax.eval_shape(lambda state: seen.append(repr(nnx.merge(graph, state))), state)
    assert seen == [page]


def test_adapters_and_experts_are_named():
    adapters = ((".*/query", nn.AdapterSettings(rank=2)),)
    page = repr(_abstract(dataclasses.replace(ENCODER, adapters=adapters)))
    assert "adapters on '.*/query': AdapterSettings(" in page
    assert f"adapter {3 * 2 * 2 * 16}" in page
    experts = (("layers/./feed_forward", nn.ExpertSettings(number=2)),)
    page = repr(_abstract(dataclasses.replace(language_helpers.GPT2, experts=experts)))
    assert "experts on 'layers/./feed_forward': ExpertSettings(number=2" in page


def test_states_and_results_are_a_page():
    model = models.build(ENCODER, _chains(ENCODER), rngs=nnx.Rngs(0))
    optimizer = training.make_optimizer({}, training.roles(model), 3)
    state = training.TrainState.create(model, nn.AuxiliaryCore, optimizer)
    counts = models.count_parameters(model)
    page = repr(state)
    assert page.startswith(f"TrainState(step 0: trainable {counts['auxiliary']:,} (")
    assert f"frozen {sum(counts.values()) - counts['auxiliary']:,} (" in page
    result = training.FitResult(
        state=state,
        stopped=None,
        stop_requested=None,
        metrics={"loss": np.float32(0.25), "dev/accuracy": 0.5},
        steps_run=3,
        steps_per_second=None,
        compile_seconds=1.5,
        train_seconds=2.0,
        traces=1,
    )
    lines = str(result).splitlines()
    assert lines[0].startswith("FitResult(stopped=None, ")
    assert "steps_run=3" in lines[0]
    assert lines[1:] == ["  loss: 0.25", "  dev/accuracy: 0.5", f"  {page}"]
