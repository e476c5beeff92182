"""Merging in a narrower type: refused where it would change weights."""

import numpy as np
import pytest
from flax import nnx

from mpojax import compression, models
from tests.io.test_adapter_kinds import MODELS, add, moved

LOW = ("layers/.*/(query|value)", {"rank": 3, "scale": 0.5})


@pytest.fixture(name="plain")
def plain_fixture():
    return models.build(MODELS["bert"], rngs=nnx.Rngs(1))


def test_a_merge_in_a_type_that_changes_weights_is_refused(plain):
    tuned = moved(add(plain, LOW))
    with pytest.raises(
        ValueError, match=r"dtype='bfloat16' would change .* weights, .* of .*table"
    ):
        compression.merge(tuned, dtype="bfloat16")
    with pytest.raises(ValueError, match="dtype='int8' must be one of 'float32'"):
        compression.merge(tuned, dtype="int8")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_merge_in_a_type_that_holds_every_weight(plain, dtype):
    rounded = {
        n: 2.0 ** np.round(np.log2(abs(a) + 0.01)) for n, a in models.to_arrays(plain).items()
    }
    plain = models.from_arrays(plain.config, {}, {n: np.float32(a) for n, a in rounded.items()})
    same = models.to_arrays(compression.merge(plain, dtype=dtype))
    for name, array in models.to_arrays(plain).items():
        np.testing.assert_array_equal(same[name], array)
