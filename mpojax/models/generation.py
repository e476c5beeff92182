"""Text generation in one compiled program, with a KV cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mpojax import checks
from mpojax.models import beam_search
from mpojax.models import sampling as sampling_lib
from mpojax.models.cache import Cache
from mpojax.models.model import Model, check_ids, check_shape, writes_text
from mpojax.models.sampling import Sampling
from mpojax.models.variants import dropless


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
    """Output of `generate`.

    Attributes:
      ids: (batch, max_new_tokens) int32: the tokens after the prompt, up to and with an end token;
        then `pad_id` of the settings, or the first `eos_id` where there is none.
      lengths: (batch,) int32: tokens of each row, the end token counted.
    """

    ids: jax.Array
    lengths: jax.Array


def generate(
    model: Model,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    key: jax.Array | None = None,
) -> Generated:
    """Continues prompts, or answers sources, until every row has ended or is full.

    One program reads the prompt in one call and then makes token by token; the KV cache is
    written in place. It is compiled once for each shape of prompt, `max_new_tokens` and `sampling`.

    Matrices in MPO form are applied, or rebuilt, at every token. `generate(jax.jit(merged)(model),
    ...)` gives the same tokens up to rounding and is the faster one: a token costs few products, so
    that rebuilding a matrix, which does not depend on the number of tokens, would be nearly all of
    the work; with experts the matrices of all of them would be rebuilt although a token visits one
    or two. It needs memory for the dense matrices, of all experts.

    On a CPU, `unstacked(model)` gives the same tokens faster, for a longer compilation: with few
    rows, copying each layer out of its stack takes longer than multiplying with it.

    Experts never drop a token here, whatever `capacity_factor` the model was trained with, see
    `dropless`: a limit by the number of tokens in a call would make a row's text depend on the
    others.

    Args:
      model: continues `input_ids` (a decoder), or answers them, beginning with
        `config.decoder_start_id` (an encoder-decoder).
      input_ids: (batch, length) integers, as an array or lists.
      attention_mask: (batch, length), True or nonzero at real tokens; None: all real. The prompts
        of a decoder are padded on the left.
      max_new_tokens: rows without an end are cut after so many.
      sampling: how tokens are chosen; None: as `config.sampling` says, which is greedy unless the
        checkpoint of the model says otherwise.
      key: of the samples, where tokens are sampled. The sample of row i depends on the key, on i
        and on its prompt alone.

    Raises:
      ValueError: arguments that do not fit, before anything is compiled. Inside of a jax
        transformation the values of `input_ids` and `attention_mask` cannot be checked.

    Example:

        >>> import mpojax as mj
        >>> from flax import nnx
        >>> from mpojax import models
        >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
        >>> model = models.build(models.DecoderConfig(vocab_size=99, **sizes), rngs=nnx.Rngs(0))
        >>> mj.generate(model, [[5, 6, 7]], max_new_tokens=4).ids.shape
        (1, 4)

    Ways of choosing tokens, and their sources: see `Sampling`.
    """
    if not writes_text(model):
        raise ValueError(
            f"a {type(model).__name__} generates no text; give a LanguageModel or EncoderDecoder."
        )
    input_ids, attention_mask = _as_array(input_ids), _as_array(attention_mask)
    check_ids("input_ids", input_ids)
    check_shape("attention_mask", attention_mask, input_ids.shape)
    _check_length(model.config, input_ids.shape[1], max_new_tokens)
    sampling = _checked_sampling(model.config, sampling, key)
    _check_values(model, input_ids, attention_mask)
    return _generate(
        model,
        jnp.asarray(input_ids).astype(jnp.int32),
        None if attention_mask is None else jnp.asarray(attention_mask).astype(bool),
        key if sampling.draws else None,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "sampling"))
def _generate(model, input_ids, attention_mask, key, *, max_new_tokens, sampling) -> Generated:
    config, model = model.config, dropless(model)
    # The first of these that there is: what fills a row behind its end.
    filler = (config.pad_id, *config.end_ids, 0)
    end = (config.end_ids, next(token for token in filler if token is not None))
    logits, mask, cache = model.prefill(input_ids, attention_mask, max_new_tokens)
    if sampling.beams > 1:
        mask = None if mask is None else jnp.repeat(mask, sampling.beams, axis=0)

    def step(ids, cache):
        output = model.decode(ids[:, None], mask, cache)
        return output.logits[:, 0], output.cache

    arguments = (step, logits, cache, max_new_tokens, end)
    if sampling.beams > 1:
        return Generated(*beam_search.search(*arguments, sampling))
    return _one_by_one(*arguments, sampling, key)


def _one_by_one(step, logits, cache: Cache, num: int, end, sampling, key) -> Generated:
    """Greedy, or sampled: a row ends with one of `end[0]` and is filled up with `end[1]`."""
    batch = logits.shape[0]
    keys = None if key is None else sampling_lib.row_keys(key, batch)
    ids = jnp.full((batch, num), end[1], jnp.int32)
    lengths, ended = jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool)

    def choose(logits, position, ids, lengths, ended):
        chosen = sampling_lib.next_tokens(logits, sampling, keys, position)
        chosen = jnp.where(ended, end[1], chosen)
        ids = jax.lax.dynamic_update_slice(ids, chosen[:, None], (0, position))
        lengths = lengths + jnp.where(ended, 0, 1)
        return ids, lengths, ended | sampling_lib.is_one_of(chosen, end[0])

    def not_finished(state):
        position, _, (_, _, ended) = state
        return (position < num) & ~jnp.all(ended)

    def body(state):
        # `position` tokens are chosen; the cache holds all but the last of them, which is read now.
        position, cache, rows = state
        last = jax.lax.dynamic_slice_in_dim(rows[0], position - 1, 1, axis=1)
        logits, cache = step(last[:, 0], cache)
        return position + 1, cache, choose(logits, position, *rows)

    # The first token is of the prompt's logits, so that the loop begins at position 1.
    first = choose(logits, jnp.int32(0), ids, lengths, ended)
    _, _, (ids, lengths, _) = jax.lax.while_loop(not_finished, body, (jnp.int32(1), cache, first))
    return Generated(ids, lengths)


def _checked_sampling(config, sampling: Sampling | None, key) -> Sampling:
    """What the caller chose, or the default of the model."""
    chosen = config.sampling if sampling is None else sampling
    if chosen.draws and key is None:
        default = "" if sampling is not None else " (the default of this model)"
        raise ValueError(
            f"temperature={chosen.temperature}{default} draws tokens: give a key, such as "
            "jax.random.key(0), or sampling=models.Sampling() for the likeliest tokens."
        )
    return chosen


def _as_array(rows):
    """Lists of rows as an array; arrays, None and what jax traces as they are."""
    if not isinstance(rows, list | tuple):
        return rows
    if len({np.shape(row) for row in rows}) > 1:
        raise ValueError(
            "rows differ in length: pad the prompts (those of a decoder on the left) and give an "
            "attention_mask."
        )
    return np.asarray(rows)


def _check_length(config, length: int, num: int):
    checks.check_value("max_new_tokens", num, checks.integer(1))
    limit = getattr(config, "max_positions", None)
    # The last new token is never read.
    if limit is not None and length + num - 1 > limit:
        raise ValueError(
            f"a prompt of {length} tokens and max_new_tokens={num} are {length + num - 1} "
            f"positions; the model has max_positions={limit}. Cut the prompt, or generate fewer "
            "tokens."
        )


def _check_values(model, input_ids, attention_mask):
    """What only concrete arrays show."""
    if _is_concrete(input_ids):
        ids, vocabulary = np.asarray(input_ids), model.config.vocab_size
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise ValueError(
                f"input_ids has ids in {ids.min()}..{ids.max()}; the model knows "
                f"0..{vocabulary - 1}. Was another tokenizer used?"
            )
    if attention_mask is None or not _is_concrete(attention_mask):
        return
    real = np.asarray(attention_mask).astype(bool)
    empty = np.flatnonzero(~real.any(axis=1))
    if empty.size:
        raise ValueError(f"attention_mask has no real token in row {empty[0]}: an empty prompt.")
    if model.prompts_continue:
        wrong = np.flatnonzero((real[:, :-1] & ~real[:, 1:]).any(axis=1))
        if wrong.size:
            raise ValueError(
                f"attention_mask has padding after a real token in row {wrong[0]}; new tokens "
                "follow the last position, so pad prompts on the left."
            )


def _is_concrete(array) -> bool:
    """True if this process can look at its values."""
    return not isinstance(array, jax.core.Tracer) and getattr(array, "is_fully_addressable", True)
