"""SmolLM2-135M as a mixture of experts: every block of a real LLaMA, from its GGUF file."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mpojax import compression, io, models
from tests.io import gguf_helpers

BLOCKS = r"layers/\d+/feed_forward"
TEXT = "The river flows down to the sea, and the boat goes with it."
DENSE, LAYERS, WIDTH = 134_515_008, 30, 576
AUXILIARY = 74_016  # of the chain of each of the three matrices, 576 x 1536 or 1536 x 576


@pytest.fixture(scope="module")
def dense():
    """(model, ids of a text, its logits)."""
    smollm2 = gguf_helpers.smollm2()
    model = io.load_pretrained(smollm2)
    ids = jnp.asarray([io.gguf_tokenizer(smollm2).encode(TEXT).ids])
    return model, ids, np.asarray(model(ids))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "structure"), [(4, "auto"), (8, "auto"), (8, "rebuild"), (8, "shared_core")]
)
def test_it_starts_as_the_dense_model(dense, number, structure, record_property):
    """Rebuilt matrices are the dense ones. Tokens that go through the chain are summed in another
    order, which moves logits of up to 28 no more than tokens after the text do, one to three times
    as many.
    """
    model, ids, expected = dense
    largest = np.abs(expected).max()
    assert 10 < ids.shape[1] < 20
    assert largest > 20
    longer = [model(jnp.tile(ids, (1, times)))[:, : ids.shape[1]] for times in (2, 3, 4)]
    own = max(float(np.abs(np.asarray(logits) - expected).max()) for logits in longer)
    rules = [(BLOCKS, {"number": number, "structure": structure})]
    experts = compression.add_experts(model, rules, rngs=nnx.Rngs(0))
    assert len(experts.shapes) == 3 * LAYERS
    count = sum(models.count_parameters(experts).values())
    router = WIDTH * number + number
    assert count == DENSE + LAYERS * (3 * number * AUXILIARY + router)
    planned = compression.planned_experts(model.config, {}, rules)
    assert planned == (experts.config, experts.shapes)
    output = experts.forward(ids)
    difference = float(np.abs(np.asarray(output.logits) - expected).max())
    record_property("difference", difference)
    assert difference <= (1e-4 if structure == "rebuild" else max(1e-4, 2.0 * own))
    assert difference <= 1e-5 * largest
    (routing,) = output.routing
    assert routing.load.shape == (LAYERS, number)
    assert float(jnp.max(jnp.sum(routing.load > 0, axis=-1))) > 1  # several experts are used
    np.testing.assert_array_equal(routing.dropped, 0.0)


@pytest.mark.slow
def test_central_cores_are_the_larger_part(dense):
    """Counts alone: of eight experts each block holds its matrices once and small cores."""
    model, _, _ = dense
    config, shapes = compression.planned_experts(model.config, {}, [(BLOCKS, {"number": 8})])
    abstract = nnx.eval_shape(lambda: models.build(config, shapes, rngs=nnx.Rngs(0)))
    counts = models.count_parameters(abstract)
    assert counts["central"] == LAYERS * 3 * 576 * 1536
    assert counts["auxiliary"] == LAYERS * 3 * 8 * AUXILIARY
    assert sum(counts.values()) < 1.41 * DENSE
