"""Gradients of ALBERT's shared layer are those of torch: sums over all depths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import io, models
from tests.parity import reference
from tests.parity.families import FAMILIES

LAYER = "encoder.albert_layer_groups.0.albert_layers.0"
NAMES = {
    "layers/0/attention/query": f"{LAYER}.attention.query",
    "layers/0/attention/out": f"{LAYER}.attention.dense",
    "layers/0/feed_forward/up": f"{LAYER}.ffn",
    "layers/0/feed_forward/down": f"{LAYER}.ffn_output",
    "embeddings/projection": "encoder.embedding_hidden_mapping_in",
}


def test_gradients_of_shared_matrices(tmp_path):
    family = FAMILIES["albert"]
    theirs = family.model("Model", seed=7)
    reference.quietly(theirs.save_pretrained, tmp_path)
    inputs = family.inputs(5)
    weights = np.random.default_rng(0).standard_normal((3, 9, 24)).astype(np.float32)
    weights *= inputs[1][..., None]
    names = ("input_ids", "attention_mask", "token_type_ids")
    tensors = {n: reference.torch.tensor(a).long() for n, a in zip(names, inputs, strict=True)}
    hidden = reference.quietly(theirs, **tensors).last_hidden_state
    (hidden * reference.torch.tensor(weights)).sum().backward()

    ours = io.load_pretrained(tmp_path)
    ids, mask, types = map(jnp.asarray, inputs)
    gradient = jax.jit(jax.grad(lambda m: jnp.sum(m(ids, mask, types) * weights)))(ours)
    arrays = models.to_arrays(gradient)
    for path, name in NAMES.items():
        expected = theirs.get_parameter(f"{name}.weight").grad.numpy().T
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            arrays[f"{path}/kernel"], expected, rtol=0, atol=1e-5 * max(1.0, scale), err_msg=path
        )
