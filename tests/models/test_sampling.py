"""How tokens are sampled from logits."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpojax import models
from mpojax.models import sampling

PROBABILITIES = np.asarray([[0.1, 0.4, 0.05, 0.3, 0.15]])
LOGITS = jnp.asarray(np.log(PROBABILITIES) + 3.0, jnp.float32)


def _probabilities(logits, **settings) -> np.ndarray:
    how = models.Sampling(**{"temperature": 1.0, **settings})
    return np.asarray(jax.nn.softmax(sampling.filtered(jnp.asarray(logits), how), axis=-1))


def _normalised(*values):
    return np.asarray([values]) / sum(values)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PROBABILITIES),
        ({"top_k": 1}, _normalised(0, 1, 0, 0, 0)),
        ({"top_k": 3}, _normalised(0, 0.4, 0, 0.3, 0.15)),
        ({"top_k": 9}, PROBABILITIES),
        ({"top_p": 0.39}, _normalised(0, 1, 0, 0, 0)),
        ({"top_p": 0.41}, _normalised(0, 0.4, 0, 0.3, 0)),
        ({"top_p": 0.84}, _normalised(0, 0.4, 0, 0.3, 0.15)),
        ({"top_p": 1e-9}, _normalised(0, 1, 0, 0, 0)),
        ({"top_p": 1.0}, PROBABILITIES),
        # Of the three likeliest, the first has .47 and the first two .82.
        ({"top_k": 3, "top_p": 0.46}, _normalised(0, 1, 0, 0, 0)),
        ({"top_k": 3, "top_p": 0.81}, _normalised(0, 0.4, 0, 0.3, 0)),
        ({"temperature": 0.5}, PROBABILITIES**2 / np.sum(PROBABILITIES**2)),
        # Temperature comes first: squared, the likeliest has .55.
        ({"temperature": 0.5, "top_p": 0.5}, _normalised(0, 1, 0, 0, 0)),
        ({"temperature": 1e-30}, _normalised(0, 1, 0, 0, 0)),
    ],
)
def test_distributions_by_hand(settings, expected):
    np.testing.assert_allclose(_probabilities(LOGITS, **settings), expected, atol=1e-6)


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_k": 2}, {"top_p": 0.3}])
def test_equally_likely_tokens_stay_together(settings):
    logits = jnp.asarray([[1.0, 2.0, 2.0, 2.0, 0.0]])
    np.testing.assert_allclose(
        _probabilities(logits, **settings), _normalised(0, 1, 1, 1, 0), rtol=1e-6
    )


@hypothesis.given(
    logits=hnp.arrays(np.float32, (2, 7), elements=st.floats(-20, 20, width=32)),
    temperature=st.floats(0.1, 5.0),
    top_k=st.none() | st.integers(1, 9),
    top_p=st.none() | st.floats(0.01, 1.0),
)
def test_the_kept_tokens_are_the_fewest_that_do(logits, temperature, top_k, top_p):
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    kept = _probabilities(logits, **how) > 0
    plain = _probabilities(logits, temperature=temperature)
    of_k = _probabilities(logits, temperature=temperature, top_k=top_k)
    for row in range(2):
        inside, outside = plain[row, kept[row]], plain[row, ~kept[row]]
        assert inside.size
        # No dropped token is likelier than a kept one.
        assert not outside.size or inside.min() >= outside.max()
        if top_k is not None:
            assert np.sum(inside > inside.min()) < top_k
        if top_p is not None:
            reached = of_k[row, kept[row]]
            assert reached.sum() >= top_p - 1e-5
            assert reached[reached > reached.min()].sum() < top_p + 1e-5


def test_frequencies_of_draws():
    how = models.Sampling(temperature=1.0, top_k=4)
    keys = sampling.row_keys(jax.random.key(0), 20_000)
    logits = jnp.broadcast_to(LOGITS, (20_000, 5))
    sampled = np.asarray(jax.jit(lambda: sampling.next_tokens(logits, how, keys, 0))())
    expected = _normalised(0.1, 0.4, 0, 0.3, 0.15)[0]
    frequencies = np.bincount(sampled, minlength=5) / len(sampled)
    assert sampled.dtype == np.int32
    np.testing.assert_allclose(frequencies, expected, atol=4 * 0.5 / 20_000**0.5)
    assert frequencies[2] == 0
    again, other = (sampling.next_tokens(logits[:9], how, keys[:9], place) for place in (0, 1))
    np.testing.assert_array_equal(again, sampled[:9])
    assert (again != other).any()


def test_greedy_takes_the_first_of_the_likeliest():
    logits = jnp.asarray([[0.0, 2.0, 2.0], [1.0, 0.0, -1.0]])
    chosen = sampling.next_tokens(logits, models.Sampling(), None, 0)
    np.testing.assert_array_equal(chosen, [1, 0])
    assert models.Sampling() == sampling.GREEDY
    assert not sampling.GREEDY.draws


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, r"temperature=-1\.0 must be a finite number of at least 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"temperature": True}, "temperature=True"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0 must be an integer of at least 1"),
        ({"temperature": 1.0, "top_k": 2.0}, r"top_k=2\.0 must be"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p=0\.0 must be a finite number of at most 1"),
        ({"temperature": 1.0, "top_p": 1.5}, r"top_p=1\.5 must be a finite number of at most 1"),
        ({"top_k": 5}, "top_k=5 and top_p=None do nothing at temperature 0"),
        ({"beams": 0}, "beams=0 must be an integer of at least 1"),
        ({"beams": 2, "temperature": 1.0}, "beams=2 samples nothing"),
        ({"beams": 2, "length_penalty": float("inf")}, "length_penalty=inf must be a finite"),
        ({"length_penalty": 2.0}, r"length_penalty=2\.0 does nothing without beams"),
    ],
)
def test_bad_values(settings, message):
    with pytest.raises(ValueError, match=message):
        models.Sampling(**settings)
