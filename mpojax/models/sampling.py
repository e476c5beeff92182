"""Choice of the next token from logits: the likeliest one, or sampled with filters."""

import jax
import jax.numpy as jnp

from mpojax import checks


@checks.settings()
class Sampling:
    """Settings of how `generate` chooses tokens; by default the likeliest ones (greedy).

    Attributes:
      temperature: logits are divided by it before a token is sampled; 0: the likeliest token.
      top_k: only the k likeliest tokens, and any as likely as the last of them, may be sampled.
      top_p: only the likeliest tokens that together reach this probability, and any as likely as
        the last of them, may be sampled (Holtzman et al., "The Curious Case of Neural Text
        Degeneration", 2020). After temperature and `top_k`.
      beams: 1, or how many continuations of each row beam search keeps; it draws nothing.
      length_penalty: of beam search: texts are compared by log probability / length^penalty, so
        that above 0 longer ones win, below 0 shorter ones.

    Raises:
      ValueError: a value out of range, or one that would do nothing.
    """

    temperature: float = checks.field(checks.number(0).noted("0 is greedy"), 0.0)
    top_k: int | None = checks.field(checks.integer(1), None)
    top_p: float | None = checks.field(checks.number(above=0, high=1), None)
    beams: int = checks.field(checks.integer(1), 1)
    length_penalty: float = checks.field(checks.number(), 1.0)

    def __post_init__(self):
        checks.check_clashes(
            {
                f"top_k={self.top_k} and top_p={self.top_p} do nothing at temperature 0, which "
                "takes the likeliest token; give a temperature such as 1.0": (
                    self.temperature == 0.0 and not (self.top_k is None and self.top_p is None)
                ),
                f"beams={self.beams} samples nothing: leave temperature={self.temperature} out, "
                "or set beams=1": self.beams > 1 and self.temperature > 0.0,
                f"length_penalty={self.length_penalty} does nothing without beams; give beams "
                "above 1": self.beams == 1 and self.length_penalty != 1.0,
            }
        )

    @property
    def draws(self) -> bool:
        """True if tokens are sampled, which takes a key."""
        return self.temperature > 0.0


def is_one_of(tokens: jax.Array, ids: tuple[int, ...]) -> jax.Array:
    """True for each token that is among the ids."""
    return jnp.isin(tokens, jnp.asarray(ids, jnp.int32))


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """A key for each row; that of row i depends on (key, i) alone, not on the number of rows."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows, dtype=jnp.uint32))


def next_tokens(
    logits: jax.Array, sampling: Sampling, keys: jax.Array | None, step: jax.Array | int
) -> jax.Array:
    """Chosen tokens (rows,), int32, of logits (rows, vocabulary); `keys` of `row_keys`."""
    if not sampling.draws:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(key, row):
        # argmax of logits + Gumbel noise, by row and step: no row depends on its neighbours.
        return jax.random.categorical(jax.random.fold_in(key, step), row)

    return jax.vmap(draw)(keys, filtered(logits, sampling)).astype(jnp.int32)


def filtered(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits (rows, vocabulary), float32, of the distribution tokens are sampled from.

    Temperature, then `top_k`, then `top_p`; -inf at tokens that may not be sampled.
    """
    logits = logits.astype(jnp.float32)
    # The largest becomes 0, so that no temperature makes a logit infinitely large.
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / sampling.temperature
    vocabulary = logits.shape[-1]
    k = vocabulary if sampling.top_k is None else min(sampling.top_k, vocabulary)
    if k < vocabulary:
        # Ties with the k-th largest stay, as in transformers.
        last = jax.lax.top_k(logits, k)[0][..., -1:]
        logits = jnp.where(logits >= last, logits, -jnp.inf)
    if sampling.top_p is not None and sampling.top_p < 1.0:
        logits = jnp.where(logits >= _last_of_top_p(logits, sampling.top_p), logits, -jnp.inf)
    return logits


def _last_of_top_p(logits: jax.Array, top_p: float) -> jax.Array:
    """The smallest logit (rows, 1) that is needed to reach a probability of `top_p`."""
    ordered = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    # Mass of what is more probable: the first token is always kept.
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    return jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)


GREEDY = Sampling()
