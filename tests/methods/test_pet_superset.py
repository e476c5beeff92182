"""What is left of a super-set, cut out: the same function in fewer parameters."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from mpojax import compression, models
from mpojax.methods.pet import masks as pet_masks
from mpojax.methods.pet import superset as pet_superset
from mpojax.methods.pet.groups import Chain
from tests import marks
from tests.models import small
from tests.models.test_kinds import IDS, MASK

BERT = dataclasses.replace(small.BERT, num_labels=2)
RULES = (
    (r"layers/\d+/.*/(query|value)", {"rank": 3}),
    (r"layers/\d+/.*/(up|down)", {"kind": "mpo", "num_cores": 3, "bond": 3}),
    (r"(?!head/).*/bias", {"kind": "bias"}),
    (r"layers/\d+/.*/key", {"kind": "rescale"}),
)


def drawn_masks(superset, seed):
    """Half of everything; a bond keeps its first index, or goes with its whole chain."""
    rng, masks = np.random.default_rng(seed), {}
    for number, (unit, whole) in enumerate(superset.whole_masks().items()):
        arrays = tuple(np.asarray(rng.random(m.shape) < 0.5) for m in whole)
        if isinstance(superset.spec[unit], Chain):
            for mask in arrays:
                mask[0] = True
                mask[...] = mask & (number % 3 > 0)
        masks[unit] = arrays
    return masks


@pytest.mark.parametrize("seed", marks.slow_but((0,), (0, 1)))
def test_what_is_cut_out_computes_what_the_masked_super_set_does(seed):
    rng = np.random.default_rng(seed)
    model = compression.add_adapters(
        models.build(BERT, rngs=nnx.Rngs(1)), list(RULES), rngs=nnx.Rngs(0)
    )
    superset = pet_superset.read(model, "structured")
    masks, arrays = drawn_masks(superset, seed), models.to_arrays(model)
    for name in superset.sizes:
        arrays[name] = arrays[name] + 0.1 * rng.standard_normal(arrays[name].shape)
    own = {name: np.float32(arrays[name]) for name in superset.sizes}
    own = pet_masks.apply_mask(own, masks, superset.spec, superset.reference)
    arrays = {name: np.float32(array) for name, array in (arrays | own).items()}
    masked = models.from_arrays(model.config, {}, arrays)
    small_one = superset.compacted(masked, masks)
    np.testing.assert_allclose(small_one(IDS, MASK), masked(IDS, MASK), rtol=0, atol=1e-6)
    sizes = models.array_shapes(small_one.config)
    left = sum(int(np.prod(sizes[name])) for name in models.adapter_arrays(small_one))
    assert left == superset.cost(masks) < superset.cost(superset.whole_masks())
    assert np.any(np.abs(masked(IDS, MASK) - model(IDS, MASK)) > 1e-3)
