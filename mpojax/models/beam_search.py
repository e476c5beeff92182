"""Beam search: the continuations of highest score, several kept for each row.

The rules are those of transformers' `generate(num_beams=..., early_stopping=False)`, so that the
same model gives the same texts: of 2 * beams candidates, or (1 + end tokens) * beams where there
are several end tokens, those that ended go to the finished texts if they are among the best
`beams`, and the best `beams` that did not end go on; a row stops when its best running text, at its
present length, scores below all of its finished ones.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mpojax.models.cache import Cache
from mpojax.models.sampling import Sampling, is_one_of

# Score of a text that is none: below every log probability.
_NEVER = -1.0e9

Step = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Texts:
    """Texts of each row, best first.

    Attributes:
      ids: (batch, beams, max_new_tokens).
      scores: (batch, beams) float32: log probabilities, of finished texts / length^penalty.
      lengths: (batch, beams) int32.
      full: (batch, beams) booleans: whether there is a text.
    """

    ids: jax.Array
    scores: jax.Array
    lengths: jax.Array
    full: jax.Array

    def pick(self, which: jax.Array) -> "_Texts":
        """Selects the texts with the indices (batch, some)."""
        return jax.tree.map(lambda array: _pick(array, which), self)

    def joined(self, other: "_Texts") -> "_Texts":
        """Both."""
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1), self, other)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """`may_improve` (batch,): whether a running text could still beat a finished one."""

    position: jax.Array
    cache: Cache
    running: _Texts
    finished: _Texts
    may_improve: jax.Array


def search(
    step: Step,
    logits: jax.Array,
    cache: Cache,
    num: int,
    end: tuple[tuple[int, ...], int],
    sampling: Sampling,
) -> tuple[jax.Array, jax.Array]:
    """(ids (batch, num) int32, lengths (batch,) int32) of the best text of each row.

    Args:
      step: (tokens (batch * beams,), cache) -> (logits of the next ones, cache).
      logits: (batch, vocabulary), of the first tokens.
      cache: of the prompts, (batch) rows.
      num: tokens of the longest text.
      end: the tokens that end a text (none: nothing does), and what fills the positions after it.
      sampling: gives beams and length penalty.
    """
    batch, beams = logits.shape[0], sampling.beams
    none = _Texts(
        ids=jnp.full((batch, beams, num), end[1], jnp.int32),
        scores=jnp.full((batch, beams), _NEVER, jnp.float32),
        lengths=jnp.zeros((batch, beams), jnp.int32),
        full=jnp.zeros((batch, beams), bool),
    )
    # All beams hold the same prompt: the first tokens come from one of them.
    running = dataclasses.replace(none, scores=none.scores.at[:, 0].set(0.0))
    # beams copies of each row: texts of one prompt share nothing but their start.
    state = _State(jnp.int32(0), cache.repeated(beams), running, none, jnp.ones(batch, bool))
    state = _advance(state, jnp.repeat(logits, beams, axis=0), end[0], sampling)

    def not_finished(state):
        return (state.position < num) & jnp.any(state.may_improve)

    def body(state):
        last = jax.lax.dynamic_slice_in_dim(state.running.ids, state.position - 1, 1, axis=2)
        logits, cache = step(last.reshape(-1), state.cache)
        return _advance(dataclasses.replace(state, cache=cache), logits, end[0], sampling)

    best = jax.lax.while_loop(not_finished, body, state).finished
    return best.ids[:, 0], best.lengths[:, 0]


def _advance(state: _State, logits, end_ids: tuple[int, ...], sampling: Sampling) -> _State:
    """Extends every running text by a token."""
    beams, running = sampling.beams, state.running
    batch, _, num = running.ids.shape
    candidates, parents = _candidates(state, logits, len(end_ids))
    is_last = state.position + 1 == num
    tokens = jax.lax.dynamic_slice_in_dim(candidates.ids, state.position, 1, axis=2)[..., 0]
    ended = is_last | is_one_of(tokens, end_ids)

    # A text that ends leaves the running ones, whatever its score.
    # Finite instead of -inf: sums and quotients of it stay ordered, and none is NaN.
    running_scores = candidates.scores + jnp.where(ended, _NEVER, 0.0)
    which = jax.lax.top_k(running_scores, beams)[1]
    next_running = dataclasses.replace(candidates, scores=running_scores).pick(which)
    # Row of the cache of each kept text: that of its parent.
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None] * beams + _pick(parents, which)
    cache = state.cache.reordered(rows.reshape(-1))

    # As float64 and rounded once, as the reference does.
    powers = np.arange(1, num + 1, dtype=np.float64) ** sampling.length_penalty
    power = jnp.asarray(powers.astype(np.float32))[state.position]
    # Ends count among the best `beams` candidates only, as in transformers.
    among_best = jnp.arange(ended.shape[1], dtype=jnp.int32)[None] < beams
    new = ended & among_best
    # score = sum of log p / length^penalty
    scores = candidates.scores / power
    scores = scores + jnp.where(state.may_improve[:, None], 0.0, _NEVER)
    scores = scores + jnp.where(new, 0.0, _NEVER)
    finished = state.finished.joined(dataclasses.replace(candidates, scores=scores, full=new))
    finished = finished.pick(jax.lax.top_k(finished.scores, beams)[1])

    # No running text can overtake once its best at this length is below the worst finished.
    possible = next_running.scores[:, 0] / power
    worst = jnp.where(finished.full, jnp.min(finished.scores, axis=1, keepdims=True), _NEVER)
    improves = state.may_improve & jnp.any(possible[:, None] > worst, axis=1)
    return _State(state.position + 1, cache, next_running, finished, improves)


def _candidates(state: _State, logits, num_ends: int) -> tuple[_Texts, jax.Array]:
    """The best texts that are one token longer, and the indices of their parents.

    So many that `beams` are left to continue even where the best ones all end.
    """
    running = state.running
    batch, beams, _ = running.ids.shape
    gains = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1).reshape(batch, beams, -1)
    # log p(text, token) = log p(text) + log p(token | text)
    totals = gains + running.scores[:, :, None]
    # Each of the beams ends in at most num_ends ways; one more candidate of each goes on.
    kept = min(max(2, 1 + num_ends), gains.shape[-1]) * beams
    scores, flat = jax.lax.top_k(totals.reshape(batch, -1), kept)
    # flat = parent * vocabulary + token
    parents, tokens = (part.astype(jnp.int32) for part in jnp.divmod(flat, gains.shape[-1]))
    longer = running.pick(parents)
    ids = jax.lax.dynamic_update_slice(longer.ids, tokens[..., None], (0, 0, state.position))
    longer = dataclasses.replace(longer, ids=ids, scores=scores, lengths=longer.lengths + 1)
    return longer, parents


def _pick(array, which):
    """Entries of (batch, many, ...) by their indices (batch, some)."""
    return jax.vmap(lambda row, numbers: row[numbers])(array, which)
