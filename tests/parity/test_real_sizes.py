"""ALBERT-base and MobileBERT at their published sizes, with fresh weights of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from mpojax import compression, io
from tests.parity import reference

run = jax.jit(lambda model, *inputs: model(*inputs))

SETTINGS = {
    "Albert": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "MobileBert": {"classifier_activation": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("prefix", SETTINGS)
def test_published_sizes(tmp_path, prefix):
    config = getattr(reference.transformers, f"{prefix}Config")(**SETTINGS[prefix])
    reference.torch.manual_seed(0)
    kind = getattr(reference.transformers, f"{prefix}ForSequenceClassification")
    theirs = reference.quietly(kind, config).eval()
    reference.quietly(theirs.save_pretrained, tmp_path)
    ours = io.load_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 30000, (2, 128))
    mask = np.ones((2, 128), int)
    mask[1, 60:] = 0
    ids, types = np.where(mask == 1, ids, 0), rng.integers(0, 2, (2, 128))
    expected = reference.outputs(theirs, ids, mask, types).logits.numpy()
    inputs = [jnp.asarray(array) for array in (ids, mask, types)]
    np.testing.assert_allclose(run(ours, *inputs), expected, rtol=0, atol=1e-5)
    # All matrices of the layers and the token embedding as chains at full bonds: same function.
    chains, report = compression.compress(ours, [("embeddings/word|layers/.*", {})])
    assert max(row.relative_error for row in report.rows) < 1e-6
    np.testing.assert_allclose(run(chains, *inputs), expected, rtol=0, atol=1e-4)
